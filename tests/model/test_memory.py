"""The memory against plain-torch reimplementations, in every supported layout."""

import json
from dataclasses import replace

import pytest
import tiny
import torch
from published import (
    GPT2_CONFIG,
    KINDS,
    MISTRAL_CONFIG,
    RELEASED,
    D,
    V,
    gpt2_weights,
    mistral_weights,
    plain_gpt2,
    plain_mistral,
    write_weights,
)
from safetensors.torch import save_file

from mlpmem.errors import MlpMemError
from mlpmem.model.memory import Memory, MemoryConfig
from mlpmem.model.memory_layers import LAYOUTS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("family", RELEASED)
def test_a_released_layout_gives_the_logits_of_the_plain_reimplementation(
    family, nested, kind, tmp_path
):
    config, make, plain = RELEASED[family]
    folder = tmp_path / "knn_generator" if nested else tmp_path
    folder.mkdir(exist_ok=True)
    weights = make()
    (folder / "config.json").write_text(json.dumps(config))
    write_weights(folder, weights, kind)
    if nested:
        (tmp_path / "mlp_memory_config.json").write_text(
            '{"layer_position": -2, "is_train": false}'
        )
    memory = Memory.load(tmp_path)
    hidden = torch.randn(2, 5, D)
    exact = plain(weights, hidden.double())
    torch.testing.assert_close(memory(hidden).double(), exact, atol=1e-4, rtol=1e-4)
    assert memory.config.depth == (-2 if nested else -1)
    assert memory.config.temperature == 1.0
    assert memory.config.lmbda == (0.25 if family == "gpt2" else 0.5)
    assert not memory.training and not any(p.requires_grad for p in memory.parameters())


def test_only_the_memory_is_read_from_a_training_state_with_its_decoder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GPT2_CONFIG))
    weights = gpt2_weights()
    state = {f"knn_generator.{name}": weight for name, weight in weights.items()}
    state["base_lm.transformer.wte.weight"] = torch.randn(V, D)
    save_file(state, tmp_path / "model.safetensors")
    hidden = torch.randn(4, D)
    exact = plain_gpt2(weights, hidden.double())
    torch.testing.assert_close(Memory.load(tmp_path)(hidden).double(), exact, atol=1e-4, rtol=1e-4)


def test_missing_values_are_the_familys_defaults_and_n_inner_is_ignored(tmp_path):
    sparse = {k: v for k, v in MISTRAL_CONFIG.items() if k != "rms_norm_eps"}
    hidden = torch.randn(4, D) * 1e-3  # small, so that the epsilon matters
    for config, make, plain, eps in (
        (sparse, mistral_weights, plain_mistral, 1e-6),
        (GPT2_CONFIG | {"n_inner": 7}, gpt2_weights, plain_gpt2, 1e-5),
    ):
        weights = make()
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file(weights, tmp_path / "model.safetensors")
        logits, exact = Memory.load(tmp_path)(hidden).double(), plain(weights, hidden.double(), eps)
        torch.testing.assert_close(logits, exact, atol=1e-4, rtol=1e-4)


def test_a_memory_of_a_gguf_file_is_refused_for_another_file(tmp_path):
    one, other = tiny.decoder(), tiny.decoder()
    one.gguf_sha256, other.gguf_sha256 = "1" * 64, "2" * 64
    tiny.memory(one, gguf_sha256=one.gguf_sha256).save(tmp_path)
    memory = Memory.load(tmp_path).bind(one)
    with pytest.raises(MlpMemError, match="sha256 of the GGUF file 111111111111 against 2222222"):
        memory.bind(other)
    memory.bind(tiny.decoder())  # from a folder, which names no file
    row = json.loads((tmp_path / "config.json").read_text())
    del row["gguf_sha256"]  # a memory from before
    (tmp_path / "config.json").write_text(json.dumps(row))
    Memory.load(tmp_path).bind(other)
    (tmp_path / "config.json").write_text(json.dumps(row | {"gguf_sha256": 5}))
    with pytest.raises(MlpMemError, match="gguf_sha256 must be a text; got 5"):
        Memory.load(tmp_path)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_base_models_layer_types_are_ignored(family, tmp_path):
    config = MISTRAL_CONFIG | {"model_type": family, "layer_types": ["full_attention"] * 28}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(mistral_weights(), tmp_path / "model.safetensors")
    assert Memory.load(tmp_path).config.num_layers == 3


def test_another_activation_and_an_invalid_config_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GPT2_CONFIG | {"activation_function": "relu"}))
    with pytest.raises(
        MlpMemError, match="activation 'relu'; memories of the family gpt2 must have"
    ):
        Memory.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(MISTRAL_CONFIG | {"hidden_size": "wide"}))
    with pytest.raises(MlpMemError, match="not a valid mistral configuration"):
        Memory.load(tmp_path)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_saved_memory_is_loaded_with_its_config(family, tmp_path):
    memory = tiny.memory(tiny.decoder(), family, lmbda=0.55, temperature=1.5, knn_k=128)
    memory.save(tmp_path / "full")
    memory.save(tmp_path / "half", torch.float16)
    hidden = torch.randn(4, tiny.HIDDEN)
    loaded = Memory.load(tmp_path / "full")
    assert torch.equal(loaded(hidden), memory(hidden))
    assert loaded.config == memory.config
    half = Memory.load(tmp_path / "half")
    assert half.lm_head.weight.dtype == torch.float32
    torch.testing.assert_close(half(hidden), memory(hidden), atol=0.05, rtol=0.01)
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    assert Memory.load(tmp_path / "full", depth=1, lmbda=0.1).config.depth == 1


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rows_are_independent_and_features_are_the_heads_input(family):
    memory = tiny.memory(tiny.decoder(), family)
    hidden = torch.randn(3, 4, tiny.HIDDEN)
    logits = memory(hidden)
    for i in range(3):
        torch.testing.assert_close(memory(hidden[i, 2]), logits[i, 2], atol=1e-5, rtol=1e-5)
    assert torch.equal(memory.features(hidden) @ memory.lm_head.weight.T, logits)


def test_norms_are_computed_in_float32():
    memory = tiny.memory(tiny.decoder())
    hidden = torch.randn(4, tiny.HIDDEN) * 3e3  # its square overflows half precision
    memory = memory.half()
    assert memory(hidden.half()).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_norm_in_half_precision_is_rounded_once(family, dtype):
    norm = LAYOUTS[family][2](64)
    for weight in norm.parameters():
        torch.nn.init.normal_(weight)
    norm, x = norm.to(dtype), (torch.randn(50, 64) * 3 + 1).to(dtype)
    wanted = norm.float()(x.float()).to(dtype)
    assert torch.equal(norm.to(dtype)(x), wanted)


def test_a_tied_memory_uses_the_decoders_head_and_does_not_store_it(tmp_path):
    decoder = tiny.decoder()
    memory = tiny.memory(decoder, tied_head=True).bind(decoder)
    hidden = torch.randn(2, tiny.HIDDEN)
    exact = memory.features(hidden) @ decoder.head_weight.T
    assert torch.equal(memory(hidden), exact)
    memory.save(tmp_path)
    loaded = Memory.load(tmp_path).bind(decoder)
    assert torch.equal(loaded(hidden), exact)
    assert loaded.bytes == memory.bytes < tiny.memory(decoder).bytes


@tiny.needs_ops
def test_a_tied_memory_reads_a_packed_head_with_a_bias():
    decoder = tiny.decoder("phi")
    memory, hidden = tiny.memory(decoder, tied_head=True), torch.randn(2, tiny.HIDDEN)
    exact = memory.bind(decoder)(hidden)
    decoder.pack()
    assert decoder.model.lm_head.bias is not None
    torch.testing.assert_close(memory.bind(decoder)(hidden), exact)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 8}, "hidden size 8 against 32"),
        ({"vocab_size": 99}, "vocabulary 99 against"),
        ({"depth": 0}, "depth 0 against 2"),
        ({"tokenizer_hash": "0" * 64}, "tokenizer hash 000000000000 against"),
    ],
)
def test_a_memory_of_another_decoder_is_refused(change, message):
    decoder = tiny.decoder()
    memory = Memory(replace(tiny.memory(decoder).config, **change))
    with pytest.raises(MlpMemError, match=f"belongs to another decoder: {message}"):
        memory.bind(decoder)


def test_a_depth_may_be_counted_from_either_end():
    decoder = tiny.decoder(depth=2)
    Memory(replace(tiny.memory(decoder).config, depth=-1)).bind(decoder)


def released(folder, weights: dict, **config) -> None:
    (folder / "config.json").write_text(json.dumps(GPT2_CONFIG | config))
    save_file(weights, folder / "model.safetensors")


def test_wrong_names_and_shapes_are_named(tmp_path):
    weights = gpt2_weights()
    released(tmp_path, {f"module.{name}": weight for name, weight in weights.items()})
    with pytest.raises(
        MlpMemError, match="names missing such as h.0.*unknown names such as module"
    ):
        Memory.load(tmp_path)
    released(tmp_path, weights, vocab_size=V + 1)
    with pytest.raises(MlpMemError, match=rf"lm_head.weight is \[{V}, {D}\], config.json says"):
        Memory.load(tmp_path)


def test_a_truncated_weight_file_is_refused(tmp_path):
    released(tmp_path, gpt2_weights())
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(MlpMemError, match="incomplete or altered"):
        Memory.load(tmp_path)


def test_a_bin_file_that_holds_more_than_tensors_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GPT2_CONFIG))
    torch.save({"h": pytest.approx}, tmp_path / "pytorch_model.bin")
    with pytest.raises(MlpMemError, match="only files with nothing but tensors"):
        Memory.load(tmp_path)


def test_folders_without_weights_or_config_or_of_another_model_are_refused(tmp_path):
    with pytest.raises(MlpMemError, match="cannot read .*config.json"):
        Memory.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(GPT2_CONFIG))
    with pytest.raises(MlpMemError, match="has no weights"):
        Memory.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(MlpMemError, match="model_type 'bert'"):
        Memory.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mlp_memory"}')
    with pytest.raises(MlpMemError, match="hidden_size, vocab_size, num_layers"):
        Memory.load(tmp_path)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_with_infinity_or_nan_are_refused_by_name(tmp_path, number):
    memory = Memory(MemoryConfig(hidden_size=4, vocab_size=5, num_layers=1, intermediate_size=6))
    name, weight = next(iter(memory.state_dict().items()))
    weight.view(-1)[0] = number
    memory.save(tmp_path)
    with pytest.raises(MlpMemError, match=f"{name} .* contains infinity or NaN"):
        Memory.load(tmp_path)


def test_a_missing_folder_is_refused(tmp_path):
    for folder in (tmp_path / "nothing", "nobody/no-such-memory"):
        with pytest.raises(MlpMemError, match="is not a folder; .*fetch a Hub id first"):
            Memory.load(folder)


@pytest.mark.parametrize(
    "change", [{"hidden_size": 0}, {"family": "bert"}, {"lmbda": 1.5}, {"temperature": 0.0}]
)
def test_an_invalid_config_is_refused(change):
    with pytest.raises(MlpMemError, match="memory config"):
        MemoryConfig(
            **(
                {"hidden_size": 4, "vocab_size": 5, "num_layers": 1, "intermediate_size": 6}
                | change
            )
        )
