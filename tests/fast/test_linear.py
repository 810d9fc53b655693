"""Packed layers compute and are saved like plain ones, and refuse what they cannot do."""

import gguf_files
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn

import mlpmem
import mlpmem.api
from mlpmem.errors import MlpMemError
from mlpmem.fast import linear
from mlpmem.fast.few_rows import FewRows
from mlpmem.fast.linear import pack
from mlpmem.fast.packed import PackedLinear
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory

PROMPT = "The capital of Peru is"


def count(module: nn.Module) -> int:
    return sum(isinstance(part, PackedLinear) for part in module.modules())


@tiny.needs_ops
@pytest.mark.parametrize(
    ("family", "memory"),
    [("gpt2", "gpt2"), *((f, "llama") for f in (*tiny.FAMILIES, *tiny.OTHERS))],
)
def test_a_packed_float32_model_gives_the_plain_models_texts_and_probabilities(family, memory):
    def model():
        decoder = tiny.decoder(family)
        return mlpmem.api.Model(decoder, tiny.memory(decoder, memory))

    plain, packed = model(), model().pack()
    assert count(packed.decoder.model) > 3 and count(packed.memory) > 4
    wanted, found = (model.distributions(PROMPT) for model in (plain, packed))
    for source in wanted:
        torch.testing.assert_close(found[source], wanted[source], rtol=0, atol=5e-5)
    texts = [m.compare(PROMPT, max_new_tokens=8) for m in (plain, packed)]
    assert [t.text for t in texts[0].values()] == [t.text for t in texts[1].values()]


@tiny.needs_ops
@pytest.mark.parametrize("rows", [(1,), (3, 5), (2, 1, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_equals_a_product_in_float64(rows, bias):
    layer = nn.Linear(7, 13, bias=bias)
    holder = nn.Sequential(layer)
    assert pack(holder) == 1
    x = torch.randn(*rows, 7)
    wanted = x.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    torch.testing.assert_close(holder(x).double(), wanted, rtol=1e-5, atol=1e-5)
    gelu, residual = F.gelu(wanted, approximate="tanh"), torch.randn(*rows, 13)
    torch.testing.assert_close(holder[0].gelu(x).double(), gelu, rtol=1e-5, atol=1e-5)
    added = holder[0].plus(x, residual).double()
    torch.testing.assert_close(added, residual + wanted, rtol=1e-5, atol=1e-5)


@tiny.needs_ops
def test_a_packed_memory_is_saved_unchanged(tmp_path):
    bound = tiny.decoder("gpt2")
    memory = tiny.memory(bound, "gpt2")
    wanted = {name: weight.clone() for name, weight in memory.state_dict().items()}
    pack(memory)
    memory.save(tmp_path)
    found = Memory.load(tmp_path).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], weight) for name, weight in wanted.items())


@tiny.needs_ops
def test_packing_does_not_change_the_bytes(tiny_model):
    bound = tiny.decoder()
    memory, before = tiny.memory(bound), (bound.bytes, 0)
    size = memory.bytes
    pack(memory)
    pack(bound.model)
    assert (memory.bytes, bound.bytes) == (size, before[0])


@tiny.needs_ops
@pytest.mark.parametrize("name", ["forward", "gelu", "plus"])
def test_a_layer_whose_packed_product_is_wrong_stays_plain(monkeypatch, name):
    right = getattr(PackedLinear, name)
    monkeypatch.setattr(PackedLinear, name, lambda *args: right(*args) * 1.1)
    assert pack(nn.Sequential(nn.Linear(7, 13, bias=False))) == 0


def test_without_the_operators_every_layer_stays_plain(monkeypatch):
    def missing(*_):
        raise AttributeError("no such operator")

    monkeypatch.setattr(PackedLinear, "__init__", missing)
    model = tiny.decoder()
    assert pack(model.model) == 0


@tiny.needs_ops
def test_packed_weights_cannot_be_moved():
    holder = nn.Sequential(nn.Linear(7, 13))
    pack(holder)
    with pytest.raises(MlpMemError, match="cannot be moved"):
        holder.to(torch.float64)


def test_a_bundle_answers_in_the_requested_dtype_over_the_same_keys(tiny_bundle):
    plain = mlpmem.load(tiny_bundle.folder)
    half = mlpmem.load(tiny_bundle.folder, dtype="bfloat16")
    assert half.decoder.model.dtype == half.memory.norm.weight.dtype == torch.bfloat16
    assert (half.datastore.keys == plain.datastore.keys).all()
    wanted, found = (model.distributions(PROMPT) for model in (plain, half))
    for source in ("lm", "memory"):
        kl = (wanted[source].exp() * (wanted[source] - found[source])).sum()
        assert 0 < abs(float(kl)) < 0.02
    with pytest.raises(MlpMemError, match="bfloat16"):
        mlpmem.load(tiny_bundle.folder, dtype="int3")
    assert linear.form_of("float32") == (torch.float32, False)


needs_int8 = pytest.mark.skipif(
    not {"x86", "fbgemm", "onednn"} & set(torch.backends.quantized.supported_engines),
    reason="this torch has no 8-bit products",
)


@needs_int8
@pytest.mark.parametrize("bias", [True, False])
def test_an_int8_layer_is_close_to_float64_and_a_quarter_of_the_size(bias):
    layer = nn.Linear(96, 160, bias=bias)
    holder, x = nn.Sequential(layer), torch.randn(3, 5, 96)
    wanted = x.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    size = linear.bytes_of(holder)
    assert pack(holder, 8) == 1 and isinstance(holder[0], linear.Int8Linear)
    error = (holder(x).double() - wanted).norm() / wanted.norm()
    assert 0 < error < 0.04
    product, residual = holder(x), torch.randn(3, 5, 160)
    assert torch.equal(holder[0].gelu(x), F.gelu(product, approximate="tanh"))
    assert torch.equal(holder[0].plus(x, residual), residual + product)
    assert holder[0].bytes < 0.3 * size
    assert (holder[0].dense() - layer.weight).abs().max() <= layer.weight.abs().max() / 127


@needs_int8
def test_an_int8_model_answers_nearly_like_the_plain_one(tiny_bundle):
    plain, small = mlpmem.load(tiny_bundle.folder), mlpmem.load(tiny_bundle.folder, dtype="int8")
    assert plain.decoder.kl == 0 and 0 < small.decoder.kl < 0.1
    assert small.decoder.bytes + small.memory.bytes < plain.decoder.bytes + plain.memory.bytes
    assert small.generate(PROMPT, max_new_tokens=4).steps
    wanted, found = (model.distributions(PROMPT) for model in (plain, small))
    for source in ("lm", "memory"):
        kl = (wanted[source].exp() * (wanted[source] - found[source])).sum()
        assert 0 < abs(float(kl)) < 0.1
    assert (small.datastore.keys == plain.datastore.keys).all(), "keys are always built in float32"


@tiny.needs_ops
def test_a_layer_without_its_packed_form_counts_its_small_form():
    holder = nn.Sequential(nn.Linear(64, 32, bias=False, dtype=torch.bfloat16))
    pack(holder, 4)
    both, packed = linear.bytes_of(holder), 64 * 32 * 2
    holder[0].release()
    assert linear.bytes_of(holder) == both - packed == holder[0].small.bytes > 0


class Doubled(nn.Linear):
    """A subclass of nn.Linear that computes something else."""

    def forward(self, x):
        return 2 * super().forward(x)


class Written(nn.Linear):
    """A subclass that computes the product itself, as in Falcon."""

    def forward(self, x):
        return x @ self.weight.T + self.bias


@tiny.needs_ops
def test_a_subclass_of_linear_is_packed_only_if_it_computes_the_product():
    holder, x = nn.Sequential(Written(7, 13)), torch.randn(2, 7)
    wanted = holder(x)
    assert pack(holder) == 1
    torch.testing.assert_close(holder(x), wanted)
    assert pack(nn.Sequential(Doubled(7, 13))) == 0


@tiny.needs_ops
def test_a_files_small_form_is_read_when_it_is_needed_first(tmp_path, monkeypatch):
    path = gguf_files.write(
        tmp_path / "x.gguf", tiny.decoder("llama", hidden_size=64, intermediate_size=96), "Q4_0"
    )
    decoder = Decoder.load(path)
    decoder.pack(4)
    layers = [m for m in decoder.model.modules() if isinstance(m, FewRows)]
    lazy = [layer for layer in layers if layer._small is None]
    assert lazy and decoder.kl < 1, "what rounding costs is measured without holding a second form"
    before, shape = linear.bytes_of(decoder.model), lazy[0].shape
    monkeypatch.setattr(FewRows, "product", lambda small, x: pytest.fail("it is read too early"))
    x = torch.ones(1, shape[1], dtype=lazy[0].weight.dtype)
    assert lazy[0](x).shape == (1, shape[0]), "another model's code is compiled, the file is gone"
    small = lazy[0].small
    assert lazy[0].small is small and (small.outputs, small.inputs) == shape
    assert linear.bytes_of(decoder.model) == before + small.bytes
