"""Published checkpoints by name: sizes, licences, downloads from a fake Hub, and answers."""

import math

import pytest
import tiny
import torch
from fake_hub import COMMIT, FakeHub
from published import RELEASED, write_memory

import mlpmem
from mlpmem.errors import MlpMemError
from mlpmem.fast.packed import PackedLinear
from mlpmem.loading import capacity, hub, presets
from mlpmem.loading.parts import from_parts
from mlpmem.model.tokenizer import VOCABULARIES
from mlpmem.ui.service import loads

TEXT = "The capital of Peru is Lima. Gold has the symbol Au, and Vellmar is a town in the hills."


def write_decoder(folder, family: str, shard: str = "50GB"):
    """Save a random decoder as transformers does; return it."""
    decoder = tiny.decoder(family)
    decoder.model.save_pretrained(folder, max_shard_size=shard)
    decoder.tokenizer.save_pretrained(folder)
    return decoder


def plain_perplexity(decoder, weights: dict, family: str, lmbda: float) -> float:
    """Return exp of the mean nll of TEXT under the mix, by transformers and plain torch only."""
    last = (decoder.model.transformer.h if family == "gpt2" else decoder.model.model.layers)[-1]
    seen = []
    hook = last.mlp.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    ids = torch.tensor([decoder.tokenizer.encode(TEXT)])
    with torch.no_grad():
        logits = decoder.model(ids).logits[0].double()
    hook.remove()
    plain = RELEASED[family][2]
    lm, memory = logits.softmax(-1), plain(weights, seen[0][0].double()).softmax(-1)
    mixed = (1 - lmbda) * lm + lmbda * memory
    nll = [-math.log(mixed[t, ids[0, t + 1]]) for t in range(ids.shape[1] - 1)]
    return math.exp(sum(nll) / len(nll))


@pytest.mark.parametrize("family", RELEASED)
@pytest.mark.parametrize("kind", ["safetensors, sharded", "bin"])
def test_perplexity_of_published_folders_equals_an_independent_computation(family, kind, tmp_path):
    decoder = write_decoder(tmp_path / "decoder", family, "20KB" if "sharded" in kind else "1GB")
    weights = write_memory(tmp_path / "memory", family, kind)
    score = from_parts(tmp_path / "decoder", tmp_path / "memory").score(TEXT)
    for lmbda in (0.0, 0.25, 0.75, 1.0):
        wanted = plain_perplexity(decoder, weights, family, lmbda)
        assert score.perplexity("memory", lmbda) == pytest.approx(wanted, rel=2e-4)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Return a fake Hub that serves tiny repositories under a preset's ids, and an empty cache."""
    preset = presets.PRESETS["gpt2-large-wikitext103"]
    decoder = write_decoder(tmp_path / "decoder", "gpt2")
    (tmp_path / "decoder/consolidated.safetensors").write_bytes(b"not wanted" * 10_000)
    weights = write_memory(tmp_path / "memory/knn_generator", "gpt2", "bin, sharded")
    (tmp_path / "memory/mlp_memory_config.json").write_text('{"layer_position": -1}')
    ids = {preset.decoder.hub_id: tmp_path / "decoder", preset.memory.hub_id: tmp_path / "memory"}
    fake = FakeHub(ids)
    fake.be_the_hub(monkeypatch, tmp_path / "cache")
    fake.wanted = plain_perplexity(decoder, weights, "gpt2", 0.25)
    yield fake
    fake.close()


def test_a_preset_is_downloaded_once_after_size_and_licence_are_reported(served):
    reports = []
    model = presets.open_preset(
        "gpt2-large-wikitext103", tell=lambda line, share: reports.append((line, share))
    )
    assert model.systems == ["lm", "memory"]
    assert model.score(TEXT).perplexity("memory") == pytest.approx(served.wanted, rel=2e-4)
    lines = [line for line, share in reports if share is None]
    assert [COMMIT[:12] in line and "MB, licence: mit" in line for line in lines] == [0, 1, 1]
    assert reports[3][0].startswith("downloading Rubin-Wei/gpt2-large") and reports[3][1] == 0.0
    assert all(0 <= share <= 1 for _, share in reports if share is not None)
    got = [path for path in served.asked if path.startswith("GET /Rubin")]
    assert len(got) == len(set(got)) and not any("consolidated" in path for path in got)
    before = len(served.asked)
    again = mlpmem.load("gpt2-large-wikitext103")
    assert len(served.asked) == before, "a cached preset needs no request"
    assert again.score(TEXT).perplexity("memory") == pytest.approx(served.wanted, rel=2e-4)


def test_a_missing_shard_is_downloaded_again(served):
    memory = presets.PRESETS["gpt2-large-wikitext103"].memory.hub_id
    folder = hub.fetch(memory, "memory")
    assert hub.find_cached(memory, "memory") == folder
    shard = next(folder.rglob("*00002-of-00002.bin"))
    shard.resolve().unlink()
    shard.unlink(missing_ok=True)
    assert hub.find_cached(memory, "memory") is None
    assert hub.fetch(memory, "memory") == folder and shard.is_file()


def test_a_cached_decoder_without_its_tokenizer_is_downloaded_again(served):
    decoder = presets.PRESETS["gpt2-large-wikitext103"].decoder.hub_id
    folder = hub.fetch(decoder, "decoder")
    words = [path for path in folder.iterdir() if path.name in VOCABULARIES]
    for path in words:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
    assert words and hub.find_cached(decoder, "decoder") is None
    assert hub.fetch(decoder, "decoder") == folder and all(path.is_file() for path in words)


def test_an_id_the_hub_does_not_have_and_one_without_a_licence(served):
    with pytest.raises(MlpMemError, match="decoder: 'nobody/nothing' .* cannot be downloaded"):
        hub.fetch("nobody/nothing", "decoder")
    served.licence = None
    memory = presets.PRESETS["gpt2-large-wikitext103"].memory.hub_id
    assert "licence: not stated" in str(hub.look_up(memory, "memory"))
    assert "licence: mit" in str(hub.look_up(memory, "memory", licence="mit"))


def test_without_a_network_a_preset_says_so():
    with pytest.raises(MlpMemError, match="decoder: .*offline.*run it again"):
        presets.check_preset("gpt2-large-wikitext103")
    with pytest.raises(MlpMemError, match="'gpt3' is not known; use one of gpt2-large-wikitext103"):
        presets.find_preset("gpt3")


def test_only_one_copy_of_the_weights_is_downloaded():
    names = ["README.md", "config.json", "consolidated.safetensors", "tokenizer.model.v3"]
    names += ["tokenizer.json", "tokenizer.model", "chat_template.jinja", "rng_state_0.pth"]
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    old = ["pytorch_model.bin", "knn_generator/pytorch_model.bin", "checkpoint-5/config.json"]
    found = hub.wanted([*names, *shards, "model.safetensors.index.json", *old])
    assert set(found) == {
        "config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja", *shards,
        "model.safetensors.index.json", "knn_generator/pytorch_model.bin",
    }  # fmt: skip


def test_weights_that_do_not_fit_are_refused_before_they_are_read(tmp_path, monkeypatch):
    decoder = write_decoder(tmp_path / "decoder", "llama", "20KB")
    weights = write_memory(tmp_path / "memory", "llama", "bin")
    counts = {id(p): p.numel() for p in decoder.model.parameters()}
    assert capacity.parameters_in(tmp_path / "decoder") == sum(counts.values())
    counted, actual = (
        capacity.parameters_in(tmp_path / "memory"),
        sum(w.numel() for w in weights.values()),
    )
    assert actual <= counted <= 1.1 * actual, "a .bin file has some overhead"
    needed = 4 * (sum(counts.values()) + counted)
    monkeypatch.setattr(capacity, "available_bytes", lambda device: needed)
    with pytest.raises(MlpMemError, match="bfloat16 halves that, which fits; or close other"):
        from_parts(tmp_path / "decoder", tmp_path / "memory")
    model = from_parts(tmp_path / "decoder", tmp_path / "memory", dtype=torch.bfloat16)
    assert model.generate("Peru", "memory", max_new_tokens=2).steps
    monkeypatch.setattr(capacity, "available_bytes", lambda device: needed // 4)
    with pytest.raises(MlpMemError, match="does not fit either"):
        from_parts(tmp_path / "decoder", tmp_path / "memory")
    with pytest.raises(MlpMemError, match="decoder 14.5 GB, memory 3.1 GB in bfloat16"):
        presets.check_preset("mistral-7b-wikipedia")


@pytest.mark.parametrize(
    ("family", "tied"),
    [
        ("gpt2", True), ("gemma", True), ("llama", False), ("bloom", True), ("falcon", True),
        ("smollm3", True), ("gptj", False), ("gpt_neox", False),
    ],
)  # fmt: skip
def test_a_tied_head_counts_twice_when_packed(family, tied, tmp_path):
    decoder = write_decoder(tmp_path, family, "20KB")
    count = sum(p.numel() for p in decoder.model.parameters())
    assert (decoder.head_weight is decoder.model.get_input_embeddings().weight) == tied
    assert capacity.parameters_in(tmp_path) == count
    assert (
        capacity.parameters_in(tmp_path, packed=True) == count + tied * decoder.head_weight.numel()
    )


@pytest.mark.parametrize(
    ("options", "layers"),
    [({}, True), ({"plain": True}, False), ({"plain": True, "form": "bfloat16"}, True)],
)
def test_the_page_packs_weights_unless_lora_will_be_merged(options, layers, tmp_path):
    write_decoder(tmp_path, "llama")
    model, later = loads.open_parts(str(tmp_path), **options)(lambda *_: None)
    parts = list(model.decoder.model.modules())
    assert any(isinstance(part, PackedLinear) for part in parts) == layers and later == []
    assert model.generate("Peru is", max_new_tokens=2).steps


def test_presets_state_the_parameter_counts_of_their_shapes():
    d, v = 1280, 50257
    block = 2 * d + 2 * 4 * d * d + 5 * d
    assert presets.PRESETS["gpt2-large-wikitext103"].memory.parameters == 54 * block + 2 * d + d * v
    d, v = 4096, 32768
    block = d + 3 * d * 14336
    assert presets.PRESETS["mistral-7b-wikipedia"].memory.parameters == 8 * block + d + d * v
