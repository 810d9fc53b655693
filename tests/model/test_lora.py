"""Adapters are merged as in peft, stored in bundles, and refused if they are invalid."""

import json
import shutil
import sys

import pytest
import tiny
import torch
from published import RELEASED, write_memory
from safetensors.torch import load_file, save_file

from mlpmem.errors import MlpMemError
from mlpmem.formats import kind_of
from mlpmem.loading import registry
from mlpmem.loading.bundle import load_bundle
from mlpmem.loading.bundle_writer import put_adapter
from mlpmem.loading.extra_columns import ExtraColumn, extra_column
from mlpmem.model.lora import CONFIG, WEIGHTS, add_adapter, load_adapter, save_adapter

IDS = torch.tensor([[0, 40, 41, 7, 99, 3]])


def trained(family="llama", rank=4):
    """Return peft's wrapper of a tiny decoder with a large random adapter."""
    wrapped = add_adapter(tiny.decoder(family).model, rank)
    generator = torch.Generator().manual_seed(5)
    for name, weight in wrapped.named_parameters():
        if "lora_" in name:
            values = torch.randn(weight.shape, generator=generator) * 0.2
            weight.data = values.half().float()  # the precision of a saved adapter
    return wrapped


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a saved adapter; tests must not change it."""
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    save_adapter(trained(), folder)
    return folder


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "falcon"])
def test_a_merged_adapter_gives_pefts_logits_and_does_not_change_its_decoder(family, tmp_path):
    wrapped = trained(family)
    with torch.inference_mode():
        wanted = wrapped(input_ids=IDS).logits
    save_adapter(wrapped, tmp_path)
    base = tiny.decoder(family)
    before = base.forward(IDS).logits
    tuned = load_adapter(base, tmp_path)
    torch.testing.assert_close(tuned.forward(IDS).logits, wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(base.forward(IDS).logits, before), "the base has changed"
    assert (wanted - before).abs().max() > 1
    shared = {w.data_ptr() for w in base.model.parameters()}
    own = [w for w in tuned.model.parameters() if w.data_ptr() not in shared]
    assert 0 < len(own) < len(list(tuned.model.parameters())), "other weights are shared"
    assert tuned.forward(IDS).hidden.shape == base.forward(IDS).hidden.shape


def changed(folder, tmp_path, **config):
    """Return a copy of an adapter with another configuration."""
    place = tmp_path / "changed"
    shutil.copytree(folder, place)
    row = json.loads((place / CONFIG).read_text())
    (place / CONFIG).write_text(json.dumps(row | config))
    return place


def test_rank_stabilised_scaling_is_supported(folder, tmp_path):
    plain = load_adapter(tiny.decoder(), changed(folder, tmp_path, lora_alpha=16))
    shutil.rmtree(tmp_path / "changed")
    rooted = load_adapter(tiny.decoder(), changed(folder, tmp_path, lora_alpha=8, use_rslora=True))
    torch.testing.assert_close(plain.forward(IDS).logits, rooted.forward(IDS).logits)


@pytest.mark.parametrize(
    "config",
    [
        {"peft_type": "IA3"}, {"peft_type": None}, {"use_dora": "yes"}, {"bias": 3},
        {"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"modules_to_save": ["(a+)+"]},
        {"modules_to_save": "lm_head"}, {"r": 0}, {"r": True}, {"r": 10**9}, {"r": "4"},
        {"lora_alpha": float("nan")}, {"lora_alpha": "8"}, {"init_lora_weights": "corda"},
        {"rank_pattern": {"q_proj": 2}}, {"rank_pattern": {"q_proj": "2"}}, {"rank_pattern": [1]},
        {"rank_pattern": {"(a*)*b": 2}}, {"alpha_pattern": {"q_proj": "x"}},
        {"alpha_pattern": {"(": 2}}, {"alpha_pattern": {".*.*.*.*z": 2}},
        {"megatron_config": {"a": 1}}, {"layer_replication": [[0, 1]]}, {"some_new_field": "x"},
        {"corda_config": {"cache_file": "/etc/passwd"}}, {"init_lora_weights": ["gaussian"]},
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_be_merged_is_refused(folder, tmp_path, config):
    base = tiny.decoder()
    before = base.forward(IDS).logits
    with pytest.raises(MlpMemError, match="changed cannot be used: "):
        load_adapter(base, changed(folder, tmp_path, **config))
    assert torch.equal(base.forward(IDS).logits, before)


LINEAR = ["q_proj", "v_proj", "down_proj"]
KINDS = {
    "without a task type": {},
    "dora": {"use_dora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 3},
        "alpha_pattern": {"v_proj": 32, "^model.layers.0.self_attn.q_proj": 3.5},
    },
    "rooted patterns": {"rank_pattern": {"q_proj": 9}, "use_rslora": True},
    "modules to save": {"modules_to_save": ["lm_head", "model.norm"]},
    "embedding": {"target_modules": [*LINEAR, "embed_tokens"]},
    "head": {"target_modules": ["lm_head"]},
    "tokens": {"trainable_token_indices": [3, 5]},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
}


def peft_folder(family, place, **config):
    """Save an adapter as peft itself does; return the wrapper's logits."""
    peft = pytest.importorskip("peft")
    config = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR} | config
    wrapped = peft.get_peft_model(tiny.decoder(family).model, peft.LoraConfig(**config))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in wrapped.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    wrapped.save_pretrained(place)
    with torch.inference_mode():
        return wrapped.eval()(input_ids=IDS).logits


@pytest.mark.filterwarnings("ignore")  # peft's own, about unusual settings
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_saved_by_peft_give_its_logits_and_do_not_change_the_decoder(kind, tmp_path):
    wanted = peft_folder("llama", tmp_path, **KINDS[kind])
    base = tiny.decoder()
    before = base.forward(IDS).logits
    tuned = load_adapter(base, tmp_path)
    torch.testing.assert_close(tuned.forward(IDS).logits, wanted, atol=2e-5, rtol=1e-4)
    assert torch.equal(base.forward(IDS).logits, before), "the base has changed"
    assert (wanted - before).abs().max() > 0.1
    assert tuned.forward(IDS).hidden.shape == base.forward(IDS).hidden.shape
    assert not [n for n, _ in tuned.model.named_parameters() if "lora" in n or "modules_to" in n]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", [{"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True}])
def test_biases_are_merged_in_a_family_with_biases(config, tmp_path):
    wanted = peft_folder("gpt2", tmp_path, target_modules=["c_attn", "c_fc"], **config)
    base = tiny.decoder("gpt2")
    before = base.forward(IDS).logits
    tuned = load_adapter(base, tmp_path)
    torch.testing.assert_close(tuned.forward(IDS).logits, wanted, atol=2e-5, rtol=1e-4)
    assert torch.equal(base.forward(IDS).logits, before)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_peft_cannot_merge_is_refused_with_the_reason(tmp_path):
    peft_folder("llama", tmp_path, lora_bias=True)
    with pytest.raises(MlpMemError, match="does not merge .*base layer has no bias"):
        load_adapter(tiny.decoder(), tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_a_complete_head_in_an_adapter_is_read(tmp_path):
    peft_folder("llama", tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    base = tiny.decoder()
    head = torch.randn(base.head_weight.shape)
    save_file(tensors | {"base_model.model.lm_head.weight": head}, tmp_path / WEIGHTS)
    before = base.head_weight.clone()
    assert torch.equal(load_adapter(base, tmp_path).head_weight, head)
    assert torch.equal(base.head_weight, before)


def test_a_bin_file_is_read_only_if_it_has_nothing_but_tensors(folder, tmp_path):
    place = changed(folder, tmp_path)
    wanted = load_adapter(tiny.decoder(), folder).forward(IDS).logits
    torch.save(load_file(place / WEIGHTS), place / "adapter_model.bin")
    (place / WEIGHTS).unlink()
    assert torch.equal(load_adapter(tiny.decoder(), place).forward(IDS).logits, wanted)
    torch.save({"a": ExtraColumn}, place / "adapter_model.bin")
    with pytest.raises(MlpMemError, match="adapter_model.bin cannot be read"):
        load_adapter(tiny.decoder(), place)


@pytest.mark.filterwarnings("ignore")
def test_without_peft_only_plain_lora_is_read(tmp_path, monkeypatch):
    for kind in ("dora", "patterns"):
        peft_folder("llama", tmp_path / kind, **KINDS[kind])
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MlpMemError, match="uses use_dora, which peft merges; .*pip install peft"):
        load_adapter(tiny.decoder(), tmp_path / "dora")
    load_adapter(tiny.decoder(), tmp_path / "patterns")


def test_names_in_a_configuration_are_ignored(folder, tmp_path):
    place = changed(
        folder, tmp_path, base_model_name_or_path="someone/elses-model", revision="main",
        target_modules="all-linear", auto_mapping={"parent_library": "os"},
    )  # fmt: skip
    wanted = load_adapter(tiny.decoder(), folder).forward(IDS).logits
    assert torch.equal(load_adapter(tiny.decoder(), place).forward(IDS).logits, wanted)


@pytest.mark.parametrize("text", ["", "[]", "{", "3", "[" * 100_000, " " * 300_000])
def test_a_damaged_configuration_is_refused(folder, tmp_path, text):
    place = changed(folder, tmp_path)
    (place / CONFIG).write_text(text)
    with pytest.raises(MlpMemError, match="cannot be used"):
        load_adapter(tiny.decoder(), place)


def altered(tensors):
    """Yield (part of the message, tensors) of invalid weights."""
    name = next(n for n in tensors if "lora_A" in n)
    without = {n: t for n, t in tensors.items() if n != name}
    yield "lacks one of its two factors", without
    yield "does not merge", tensors | {"base_model.model.lm_head.weight": torch.ones(2, 2)}
    yield "does not merge", tensors | {"base_model.model.other.weight": torch.ones(2, 2)}
    yield "not a LoRA factor", tensors | {"x.lora_A.weight": torch.ones(2, 2)}
    yield "its factors", tensors | {name: torch.ones(4, 7)}
    yield "its factors", tensors | {name: torch.ones(4)}
    yield "infinity or NaN", tensors | {name: torch.full_like(tensors[name], float("inf"))}
    norm = "base_model.model.model.norm.lora_"
    pair = {f"{norm}A.weight": torch.ones(4, 32), f"{norm}B.weight": torch.ones(32, 4)}
    yield "not one of its linear layers", tensors | pair
    odd = "base_model.model.__class__.lora_"
    pair = {f"{odd}A.weight": torch.ones(4, 32), f"{odd}B.weight": torch.ones(32, 4)}
    yield "not one of its linear layers", tensors | pair
    yield "lacks one", {}


def test_weights_that_do_not_fit_are_refused_and_the_decoder_is_unchanged(folder, tmp_path):
    base = tiny.decoder()
    before = base.forward(IDS).logits
    for number, (what, tensors) in enumerate(altered(load_file(folder / WEIGHTS))):
        place = tmp_path / str(number)
        shutil.copytree(folder, place)
        save_file(tensors, place / WEIGHTS)
        with pytest.raises(MlpMemError, match=what):
            load_adapter(base, place)
    (place / WEIGHTS).write_bytes(b"no safetensors")
    with pytest.raises(MlpMemError, match="cannot be read"):
        load_adapter(base, place)
    assert torch.equal(base.forward(IDS).logits, before)


# Bundles with an adapter, and folders as extra columns


@pytest.fixture
def adapted(folder, tmp_path):
    """Return a bundle with an adapter."""
    adapter = ExtraColumn("finetuned", folder, "adapter", "tuned on B", 12.34)
    return tiny.bundle(tmp_path / "bundle", adapters=[adapter])


def test_a_bundles_adapter_is_a_column(adapted, folder):
    bundle = load_bundle(adapted.folder)
    (mine,) = bundle.adapters
    assert (mine.name, mine.label, mine.seconds, mine.kind) == (
        "finetuned", "tuned on B", 12.3, "adapter",
    )  # fmt: skip
    assert "adapters/finetuned/adapter_model.safetensors" in bundle.manifest["files"]
    model = bundle.model()
    column = registry.SystemRegistry(model, bundle.adapters).system("finetuned")
    trace = column.generate("The capital of Peru is", max_new_tokens=5)
    tuned = load_adapter(model.decoder, folder)
    ids = tuned.encode("The capital of Peru is")
    wanted = tuned.forward(torch.tensor([ids]), last=1).logits[0, -1].log_softmax(-1)
    torch.testing.assert_close(column.log_probs(ids)[0], wanted, atol=1e-5, rtol=1e-5)
    assert trace.steps[0].token_id == int(wanted.argmax()) and trace.system == "lm"
    assert trace.model["column"] == "finetuned" and trace.model["label"] == "tuned on B"


def test_an_adapter_can_be_added_to_an_existing_bundle(folder, tmp_path):
    bundle = tiny.bundle(tmp_path / "bundle")
    assert load_bundle(bundle.folder).adapters == [] and "adapters" not in bundle.manifest
    for label in ("first", "second"):
        put_adapter(bundle.folder, ExtraColumn("finetuned", folder, "adapter", label))
        (mine,) = load_bundle(bundle.folder).adapters
        assert mine.label == label
    with pytest.raises(MlpMemError, match="give another"):
        put_adapter(bundle.folder, ExtraColumn("../out", folder, "adapter"))


def test_an_altered_adapter_is_named_before_it_is_used(adapted):
    path = adapted.folder / "adapters" / "finetuned" / CONFIG
    path.write_text(path.read_text().replace("LORA", "LORB"))
    with pytest.raises(MlpMemError, match="adapters/finetuned/adapter_config.json is altered"):
        load_bundle(adapted.folder)


@pytest.mark.parametrize(
    "listed",
    [
        [], "x", {"finetuned": 3}, {"../finetuned": {}}, {"lm": {}}, {"other": {}},
        {"finetuned": {"label": 3}}, {"finetuned": {"label": "x" * 500}}, {"Fine Tuned": {}},
        {"finetuned": {"seconds": -1}}, {"finetuned": {"seconds": float("nan")}},
    ],
)  # fmt: skip
def test_malformed_adapters_in_a_manifest_are_refused(adapted, listed):
    path = adapted.folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"adapters": listed}))
    with pytest.raises(MlpMemError, match="adapters cannot be used"):
        load_bundle(adapted.folder)


def test_a_folders_kind_follows_from_its_files(adapted, folder, tmp_path):
    assert kind_of(folder) == "adapter"
    assert kind_of(adapted.folder / "decoder") == "decoder"
    assert kind_of(adapted.folder / "memory") == "memory"
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "mlp_memory_config.json").write_text("{}")
    assert kind_of(tmp_path / "published") == "memory"
    for family in RELEASED:
        write_memory(tmp_path / family, family)
        assert kind_of(tmp_path / family) == "memory", "published, without a nested folder"
    assert extra_column(f"tuned={folder}").kind == "adapter"
    with pytest.raises(MlpMemError, match="must hold a decoder"):
        extra_column(f"tuned={tmp_path}")


@pytest.mark.parametrize("text", ["tuned", "=x", "tuned=", "lm=x", "Tuned=x", "a-b=x", "rag=x"])
def test_a_malformed_column_is_refused(text):
    with pytest.raises(MlpMemError, match="give "):
        extra_column(text)


def test_every_kind_of_folder_becomes_a_column(adapted, folder):
    model = load_bundle(adapted.folder).model()
    folders = {"a": folder, "d": adapted.folder / "decoder", "m": adapted.folder / "memory"}
    systems = registry.SystemRegistry(
        model, [ExtraColumn(n, f, kind_of(f)) for n, f in folders.items()]
    )
    assert {"lm", "memory", "a", "d", "m"} == set(systems.makers)
    traces = {name: systems.system(name).generate("Peru", max_new_tokens=3) for name in folders}
    assert [traces[n].system for n in "adm"] == ["lm", "lm", "memory"]
    ids = [s.token_id for s in model.generate("Peru", "lm", max_new_tokens=3).steps]
    assert [s.token_id for s in traces["d"].steps] == ids, "equal weights give equal answers"
    mine = [s.token_id for s in model.generate("Peru", "memory", lmbda=0.9, max_new_tokens=3).steps]
    other = systems.system("m").at(0.9).generate("Peru", max_new_tokens=3)
    assert [s.token_id for s in other.steps] == mine and other.lmbda == 0.9
    with pytest.raises(MlpMemError, match="must be one of lm, memory.*got 'rag'"):
        systems.system("rag")


def test_further_numbers_of_passages_are_further_systems(adapted):
    bundle = load_bundle(adapted.folder)
    systems = registry.SystemRegistry(bundle.model(), documents=bundle.documents, passages=(1, 3))
    one, three = systems.systems(["rag", "rag_3"])
    assert (one.count, one.name, three.count, three.name) == (1, "rag", 3, "rag_3")
    ids = one.decoder.encode("the of")
    assert len(three.context(ids, 4)) > len(one.context(ids, 4)) > len(ids)
    assert one.passages is three.passages, "one index for all"
