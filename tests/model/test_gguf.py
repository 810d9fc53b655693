"""GGUF files give what transformers reads of them, and damage is named before weights are read."""

import shutil

import numpy as np
import pytest
import tiny
import torch

pytest.importorskip("gguf")
import gguf
import gguf_files
from gguf_files import ARCHITECTURES, TEMPLATE
from transformers import AutoModelForCausalLM, GgufConfig

import mlpmem
from mlpmem.errors import MlpMemError
from mlpmem.loading import capacity
from mlpmem.model import gguf as ours
from mlpmem.model.decoder import Decoder
from mlpmem.model.gguf_blocks import KINDS, dense, groups
from mlpmem.model.prompts import chat_ids

IDS = torch.tensor([[0, 9, 40, 7, 12, 90, 33]])


@pytest.fixture
def made(tmp_path):
    """Return a Llama's GGUF file."""
    return gguf_files.write(tmp_path / "made.gguf", tiny.decoder("llama"))


@pytest.mark.parametrize("number", KINDS)
def test_every_kind_of_block_equals_the_packages_own_dequantisation(number):
    kind = KINDS[number]
    reference = gguf.GGMLQuantizationType(number)
    assert (reference.name, gguf.GGML_QUANT_SIZES[reference]) == (
        kind.name, (kind.block, kind.bytes),
    )  # fmt: skip
    rng = np.random.default_rng(number)
    raw = rng.integers(0, 256, (5, 3 * 256 // kind.block * kind.bytes), dtype=np.uint8)
    # any bytes are blocks, but for halves that are not finite: exponents below the highest
    raw &= np.uint8(0xBF) if kind.dtype else np.uint8(0xFF)
    given = raw
    if kind.dtype is not None:
        given = raw.view({torch.float32: "f4", torch.float16: "f2"}.get(kind.dtype, "u1"))
    with np.errstate(all="ignore"):
        wanted = gguf.dequantize(given, reference)
    found = dense(torch.from_numpy(raw), kind).numpy()
    assert found.shape == (5, 768)
    np.testing.assert_array_equal(found, wanted)
    if kind.bits:
        found = groups(torch.from_numpy(raw), kind)
        assert -(2 ** (kind.bits - 1)) <= int(found.q.min()) <= int(found.q.max()) < 2**kind.bits


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_file_gives_the_logits_of_the_model_it_was_made_from(tmp_path, family):
    # a GGUF file does not say what Gemma's scores are divided by: it is a head's size
    gemma = {"query_pre_attn_scalar": 8} if family.startswith("gemma") else {}
    decoder = tiny.decoder(family, **gemma)
    with torch.no_grad():
        for weight in decoder.model.parameters():
            if weight.dim() == 1:
                weight.add_(0.1 * torch.randn_like(weight))  # norms and biases that show
    path = gguf_files.write(tmp_path / "made.gguf", decoder)
    found = Decoder.load(path)
    assert found.model.config.model_type == family
    assert found.tokenizer_hash == decoder.tokenizer_hash
    wanted, got = decoder.forward(IDS), found.forward(IDS)
    torch.testing.assert_close(got.logits, wanted.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(got.hidden, wanted.hidden, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_a_quantised_file_gives_transformers_logits(tmp_path, kind):
    torch.manual_seed(0)
    decoder = tiny.decoder("llama", hidden_size=64, intermediate_size=96)
    path = gguf_files.write(tmp_path / "made.gguf", decoder, kind)
    options = {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, **options)
    found = Decoder.load(path)
    with torch.inference_mode():
        wanted = reference(IDS).logits.log_softmax(-1)
    torch.testing.assert_close(found.forward(IDS).logits.log_softmax(-1), wanted, rtol=0, atol=1e-4)
    layer = found.model.model.layers[1].self_attn.q_proj
    if KINDS[int(gguf.GGMLQuantizationType[kind])].bits:
        assert torch.equal(layer.blocks.read().dense(), layer.weight)
    else:
        assert not hasattr(layer, "blocks")


def test_llama_3s_frequencies_are_divided_as_the_file_says(tmp_path):
    decoder = tiny.decoder("llama")
    factors = np.array([1, 2, 4, 8], dtype=np.float32)
    write = gguf.GGUFWriter.write_header_to_file

    def with_factors(writer):
        writer.add_tensor("rope_freqs.weight", factors)
        return write(writer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_header_to_file", with_factors)
        path = gguf_files.write(tmp_path / "made.gguf", decoder)
    plain = decoder.model.model.rotary_emb.inv_freq
    found = Decoder.load(path).model.model.rotary_emb.inv_freq
    torch.testing.assert_close(found, plain / torch.from_numpy(factors))


def test_a_chat_uses_the_files_template_and_ends_where_it_says(tmp_path):
    decoder = tiny.decoder("llama")
    ends = {"tokenizer.ggml.eot_token_id": ("add_uint32", 7)}
    path = gguf_files.write(tmp_path / "made.gguf", decoder, template=TEMPLATE, **ends)
    found = Decoder.load(path)
    assert found.eos_ids == {1, 7}
    assert found.tokenizer.bos_token == "<s>" and found.special_ids == {0, 1}
    turn = found.tokenizer.encode("Peru", add_special_tokens=False)
    assert chat_ids(found, [("Peru", "")])[-len(turn) - 3 :] == [0, *turn, 1, 0]


def test_a_model_of_parts_takes_a_file_and_keys_a_text_with_it(made, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("The capital of Peru is Lima. " * 40, encoding="utf-8")
    model = mlpmem.load(decoder=made, text=text)
    assert model.systems == ["lm", "knn"]
    trace = model.generate("The capital of Peru is", "knn", lmbda=1.0, max_new_tokens=5)
    assert trace.text == " Lima"
    assert np.isfinite(model.score("Peru is Lima").nll["lm"]).all()


def test_its_size_is_known_from_its_head(made):
    wanted = sum(weight.numel() for weight in tiny.decoder("llama").model.parameters())
    assert capacity.parameters_in(made) == wanted
    assert Decoder.load(made, dtype=torch.bfloat16).model.dtype == torch.bfloat16


def _refusal(path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours, "read_rows", lambda *_: pytest.fail("weights were read"))
        with pytest.raises(MlpMemError) as error:
            Decoder.load(path)
    return str(error.value)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.9, 0.9999])
def test_a_file_that_is_cut_off_is_refused_by_name_at_every_length(made, part):
    data = made.read_bytes()
    made.write_bytes(data[: int(part * len(data))])
    said = _refusal(made)
    assert "made.gguf" in said and ("again" in said or "begin" in said)


def test_damage_anywhere_in_the_head_never_raises_anything_else(made):
    data = made.read_bytes()
    end = min(place.start for place in ours.read_header(made).places.values())
    rng = np.random.default_rng(0)
    for at in rng.integers(0, end, 300):
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(rng.integers(8))
        made.write_bytes(damaged)
        try:
            ours.read_header(made)
        except MlpMemError as error:
            assert "made.gguf" in str(error)


def test_what_cannot_be_read_here_is_said(tmp_path, made, monkeypatch):
    llama = tiny.decoder("llama")
    parts = {"split.count": ("add_uint16", 3)}
    said = _refusal(gguf_files.write(tmp_path / "parts.gguf", llama, **parts))
    assert "3 parts" in said and "llama-gguf-split --merge" in said
    data = made.read_bytes()
    for old, new, wanted in (
        (b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama",
         b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0mamba", "family 'mamba'"),
        (b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz", "no tokenizer"),
        (b"blk.1.attn_k.weight", b"blk.1.attn_j.weight", "lacks 1 tensors, such as blk.1.attn_k"),
    ):  # fmt: skip
        assert data.count(old) == 1
        made.write_bytes(data.replace(old, new))
        assert wanted in _refusal(made)
    kind = dict(KINDS)
    kind.pop(0)
    monkeypatch.setattr(ours, "KINDS", kind)
    made.write_bytes(data)
    said = _refusal(made)
    assert "ggml type 0" in said and "Q4_K" in said


def test_a_file_in_a_folder_of_other_files_is_read_alone(made, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    shutil.copy(made, folder / "one.GGUF")
    (folder / "config.json").write_text("{}")
    assert Decoder.load(folder / "one.GGUF").num_layers == tiny.LAYERS
