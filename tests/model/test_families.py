"""Every family's row gives transformers' logits and hidden states."""

import copy

import pytest
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from mlpmem.api import Model
from mlpmem.errors import MlpMemError
from mlpmem.loading import capacity
from mlpmem.model.decoder import Decoder
from mlpmem.model.families import FAMILIES, family_of, ffn_at, logit_bound
from mlpmem.retrieval import passages
from mlpmem.retrieval.retriever import make_retriever

IDS = torch.tensor([[0, 5, 9, 7, 200, 31]])
# the FFN of layer 1, and the norm before it
LLAMA = ("model.layers.1.mlp", "post_attention_layernorm")
GEMMA = ("model.layers.1.mlp", "pre_feedforward_layernorm")
MODULES = {
    "gpt2": ("transformer.h.1.mlp", "ln_2"),
    "gpt_neox": ("gpt_neox.layers.1.mlp", "post_attention_layernorm"),
    "opt": ("model.decoder.layers.1.fc1", "final_layer_norm"),
    "phi": ("model.layers.1.mlp", "input_layernorm"),
    "gptj": ("transformer.h.1.mlp", "ln_1"),
    "bloom": ("transformer.h.1.mlp", "post_attention_layernorm"),
    "falcon": ("transformer.h.1.mlp", "input_layernorm"),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3"), LLAMA),
    **dict.fromkeys(("smollm3", "granite", "stablelm"), LLAMA),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe"), LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), GEMMA),
    "olmo2": ("model.layers.1.mlp", ""),  # it normalises the FFN's output
}
PARALLEL = ("gpt_neox", "phi", "gptj", "falcon")  # attention and FFN both read the layer's input
# configs whose FFN reads another norm, or whose attention uses row positions
VARIANTS = {
    "falcon, two norms": (
        "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, "ln_mlp", True,
    ),
    "falcon, one after another": ("falcon", {"parallel_attn": False}, LLAMA[1], False),
    "falcon, alibi": ("falcon", {"alibi": True}, "input_layernorm", True),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True}, "input_layernorm", True),
    "qwen2_moe, a dense layer": ("qwen2_moe", {"mlp_only_layers": [1]}, LLAMA[1], False),
}  # fmt: skip
CASES = {
    name: (name, {}, norm, name in PARALLEL) for name, (_, norm) in MODULES.items()
} | VARIANTS  # fmt: skip


def _observe(model: torch.nn.Module, path: str, norm: str):
    """Return a plain call's output and {"ffn": its input, "before", "normed": of the norm}."""
    seen = {}
    module = model.get_submodule(path)
    layer = model.get_submodule(path.rpartition(".")[0])
    hooks = [module.register_forward_hook(lambda _, args, out: seen.update(ffn=args[0]))]
    if norm:
        hooks.append(
            layer.get_submodule(norm).register_forward_hook(
                lambda _, args, out: seen.update(before=args[0], normed=out)
            )
        )
    with torch.no_grad():
        output = model(input_ids=IDS, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    return output, seen


@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=tiny.needs_ops)])
@pytest.mark.parametrize("case", CASES)
def test_logits_and_hidden_states_equal_a_plain_call_of_transformers(case, packed):
    name, shape, norm, parallel = CASES[case]
    decoder = tiny.decoder(name, depth=1, **shape)
    output, seen = _observe(copy.deepcopy(decoder.model), MODULES[name][0], norm)
    if packed:
        decoder.pack()
    found = decoder.forward(IDS)
    assert found.hidden.shape == (*IDS.shape, tiny.HIDDEN)
    near = {"atol": 5e-5, "rtol": 1e-5} if packed else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(found.logits, output.logits, **near)
    torch.testing.assert_close(found.hidden, seen["ffn"].view_as(found.hidden), **near)
    if norm:
        torch.testing.assert_close(found.hidden, seen["normed"].view_as(found.hidden), **near)
        layer_input = output.hidden_states[1]  # of the second layer
        same = torch.equal(seen["before"].view_as(layer_input), layer_input)
        assert same == parallel, "with parallel attention, the norm reads the layer's input"


@pytest.mark.parametrize("name", [n for n in MODULES if n not in ("bloom", "falcon", "stablelm")])
def test_a_rows_norm_is_the_one_before_the_ffn(name):
    assert FAMILIES[name].norm == MODULES[name][1]


@pytest.mark.parametrize("case", CASES)
def test_logits_follow_from_the_heads_products_and_the_row(case):
    """A memory with the decoder's head, and the training loss, rely on this."""
    name, shape, _, _ = CASES[case]
    decoder, seen = tiny.decoder(name, **shape), {}
    head = decoder.model.get_output_embeddings()
    head.register_forward_hook(lambda _, args, out: seen.update(features=args[0]))
    logits = decoder.forward(IDS).logits
    assert head.weight is decoder.head_weight
    wanted = F.linear(seen["features"], decoder.head_weight, head.bias) / decoder.logit_divisor
    bound = logit_bound(decoder.model.config, decoder.family)
    if bound is not None:
        wanted = bound * (wanted / bound).tanh()
    torch.testing.assert_close(logits, wanted)
    assert decoder.logit_divisor == (4 if name == "granite" else 1)
    assert (head.bias is not None) == (name in ("gptj", "phi"))
    assert (bound is not None) == (name == "gemma2")


@pytest.mark.parametrize(
    "packed", [False, pytest.param(True, marks=[tiny.needs_ops, pytest.mark.slow])]
)
@pytest.mark.parametrize("case", [*tiny.OTHERS, *VARIANTS])
def test_texts_equal_transformers_and_searches_use_the_decoders_states(case, packed):
    name, shape, _, _ = CASES[case]
    decoder = tiny.decoder(name, **shape)
    prompt = decoder.encode("The capital of Peru is")
    wanted = copy.deepcopy(decoder.model).generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=5, do_sample=False,
    )[0, len(prompt) :].tolist()  # fmt: skip
    store = tiny.datastore(decoder)
    model = Model(decoder, tiny.memory(decoder, FAMILIES[name].memory))
    if packed:
        model.pack()
    model.attach_datastore(store, make_retriever("exact", store.keys))
    found = model.compare(prompt, ["lm", "memory", "knn"], max_new_tokens=5)
    assert [step.token_id for step in found["lm"].steps] == wanted
    step = found["knn"].steps[0]
    assert all(n.distance >= 0 for n in step.neighbours) and step.neighbours
    p = model.distributions(prompt, lmbda=0.25, system="knn")
    mixed = 0.75 * p["lm"].exp() + 0.25 * p["knn"].exp()
    torch.testing.assert_close(p["fused"].exp(), mixed)


@pytest.mark.parametrize("case", CASES)
def test_keys_equal_the_states_of_each_single_passage(case):
    name, shape, _, _ = CASES[case]
    decoder = tiny.decoder(name, **shape)
    store = tiny.datastore(decoder)
    documents = store.documents
    of = documents.passage_at(store.positions)
    for entry in range(0, len(store), 7):
        first = documents.offsets[of[entry]]
        ids = documents.tokens[first : store.positions[entry]].astype("int64")
        hidden = decoder.forward(torch.from_numpy(ids)[None]).hidden[0, -1]
        torch.testing.assert_close(
            torch.from_numpy(store.keys[entry]).float(), hidden, atol=5e-3, rtol=5e-3
        )


@pytest.mark.parametrize("case", ["bloom", "falcon, alibi"])
def test_beginnings_are_not_shared_with_alibi(case, monkeypatch):
    name, shape, _, _ = CASES[case]
    monkeypatch.setattr(passages, "WORTH", 9.0)  # worth it for all passages
    monkeypatch.setattr(passages, "_run_shared", lambda *_: pytest.fail("beginnings are shared"))
    assert len(tiny.datastore(tiny.decoder(name, **shape)))
    with pytest.raises(pytest.fail.Exception):
        tiny.datastore(tiny.decoder("falcon"))


def test_every_family_is_tested():
    assert set(FAMILIES) == {*tiny.FAMILIES, *tiny.OTHERS, "gemma3"} == {*MODULES, "gemma3"}
    assert {row.memory for row in FAMILIES.values()} == {"gpt2", "llama"}


@pytest.mark.parametrize("tied", [True, False])
def test_the_text_part_of_a_multimodal_model_gives_its_answers(tied, tmp_path):
    full = tiny.multimodal(tmp_path / "whole", tie_word_embeddings=tied)
    decoder = Decoder.load(tmp_path / "whole", depth=1)
    output, seen = _observe(full, "model.language_model.layers.1.mlp", GEMMA[1])
    found = decoder.forward(IDS)
    torch.testing.assert_close(found.logits, output.logits)
    torch.testing.assert_close(found.hidden, seen["normed"])
    counts = {id(w): w.numel() for w in decoder.model.parameters()}
    assert capacity.parameters_in(tmp_path / "whole") == sum(counts.values())
    decoder.model.save_pretrained(tmp_path / "part")
    decoder.tokenizer.save_pretrained(tmp_path / "part")
    again = Decoder.load(tmp_path / "part", depth=1)
    assert again.model.config.model_type == "gemma3_text"
    assert torch.equal(again.forward(IDS).logits, found.logits)


def test_a_multimodal_folder_with_transformers_current_names_is_read(tmp_path):
    full = tiny.multimodal(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    renamed = {
        n.replace("language_model.model.", "model.language_model."): w for n, w in weights.items()
    }
    assert renamed.keys() != weights.keys()
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with torch.no_grad():
        wanted = full(IDS).logits
    torch.testing.assert_close(Decoder.load(tmp_path).forward(IDS).logits, wanted)


@pytest.mark.parametrize("name", ["bert", None, ["llama"], {"a": 1}])
def test_an_unknown_family_is_reported_with_the_known_ones_and_how_to_add_it(name):
    with pytest.raises(MlpMemError, match="is not known; known are gpt2.*add a row.*Family") as e:
        family_of(name)
    assert repr(str(name)) in str(e.value) and len(str(e.value)) < 700


@pytest.mark.parametrize("depth", [3, -4])
def test_a_depth_outside_the_decoder_is_refused(depth):
    decoder = tiny.decoder()
    with pytest.raises(MlpMemError, match="use -3 to 2"):
        ffn_at(decoder.model, decoder.family, depth)


def test_the_hidden_size_is_that_of_the_layers_with_narrower_embeddings():
    decoder = tiny.decoder("opt", word_embed_proj_dim=16)
    assert decoder.hidden_size == decoder.forward(IDS).hidden.shape[-1] == tiny.HIDDEN
