"""LoRA beside packed weights answers as LoRA merged into the same weights, and shares them."""

import json

import pytest
import tiny
import torch
from marks import slow

from mlpmem.errors import MlpMemError
from mlpmem.fast.few_rows import FewRows
from mlpmem.fast.llama_pass import LlamaPass
from mlpmem.fast.packed import AdaptedLinear, PackedLinear
from mlpmem.model.decoder import Decoder
from mlpmem.model.lora import CONFIG, add_adapter, load_adapter, save_adapter

IDS = torch.tensor([[0, 40, 41, 7, 99, 3]])
FORMS = [(torch.float32, 0, 1e-4), (torch.bfloat16, 0, 2e-3), (torch.bfloat16, 8, 2e-2)]
FORMS += [(torch.bfloat16, 4, 2e-3)]  # bounds of the KL in nats; 8 bits round their inputs, too


def made(family: str, dtype=torch.float32) -> Decoder:
    shape = {"hidden_size": 64, "intermediate_size": 96} if family != "gpt2" else {}
    decoder = tiny.decoder(family, **shape)
    decoder.model.to(dtype)
    return decoder


def adapter(folder, family: str):
    """Save an adapter whose effect is large."""
    wrapped = add_adapter(made(family).model, 4)
    generator = torch.Generator().manual_seed(5)
    for name, weight in wrapped.named_parameters():
        if "lora_" in name:
            weight.data = (torch.randn(weight.shape, generator=generator) * 0.1).half().float()
    save_adapter(wrapped, folder)
    return folder


def answers(decoder: Decoder) -> torch.Tensor:
    """Return log-probs of a prompt and of a step after it."""
    read = decoder.forward(IDS, use_cache=True)
    after = decoder.forward(IDS[:, :1], cache=read.cache)
    return torch.cat([read.logits, after.logits], 1).float().log_softmax(-1)


def kl(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.exp() * (one - other)).sum(-1).mean())


@tiny.needs_ops
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("dtype", "bits", "most"), FORMS)
@pytest.mark.parametrize("family", ["llama", "gpt2", *slow("qwen2")])
def test_it_answers_as_if_merged(family, dtype, bits, most, compiled, tmp_path, monkeypatch):
    if compiled and family == "gpt2":
        pytest.skip("GPT-2 has no compiled pass")
    monkeypatch.setenv("MLPMEM_COMPILE", "0")  # float32 is packed, too
    folder, base = adapter(tmp_path, family), made(family, dtype)
    base.pack(bits)
    dense = made(family)
    for name, layer in base.model.named_modules():
        if isinstance(layer, PackedLinear):
            weight = layer.small.dense() if isinstance(layer, FewRows) else layer.dense().float()
            plain = dense.model.get_submodule(name)
            weight = weight.T if type(plain).__name__ == "Conv1D" else weight
            plain.weight = torch.nn.Parameter(weight.contiguous(), requires_grad=False)
    wanted, before = answers(load_adapter(dense, folder)), answers(base)
    tuned = load_adapter(base, folder)
    if compiled:
        pytest.importorskip("numba")
        tuned.fast_pass.compile()
    assert abs(kl(wanted, answers(tuned))) < most < kl(wanted, before) / 4
    assert torch.equal(answers(base), before), "the base has changed"
    assert tuned.fast_pass is not None and tuned.fast_pass.model is tuned.model
    assert tuned.fast_pass.accepts(tuned.model, IDS, None)
    assert isinstance(tuned.fast_pass, LlamaPass) == (family != "gpt2")


@tiny.needs_ops
def test_packed_weights_are_shared(tmp_path):
    folder, base = adapter(tmp_path, "llama"), made("llama", torch.bfloat16)
    base.pack(4)
    tuned = load_adapter(base, folder)
    layers = [m for m in tuned.model.modules() if isinstance(m, AdaptedLinear)]
    own = {id(m) for m in base.model.modules()}
    assert len(layers) == 7 * tiny.LAYERS and all(id(layer.base) in own for layer in layers)
    assert tuned.bytes == base.bytes + sum(layer.bytes for layer in layers)
    added = layers[0].dense().float() - layers[0].base.dense().float()
    assert (added - layers[0].up @ layers[0].down).abs().max() < 1e-2


@tiny.needs_ops
def test_an_extension_of_lora_is_refused_beside_packed_weights(tmp_path):
    folder, base = adapter(tmp_path, "llama"), made("llama", torch.bfloat16)
    base.pack(4)
    row = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(row | {"use_dora": True}))
    with pytest.raises(MlpMemError, match="cannot stand beside packed weights"):
        load_adapter(base, folder)
