"""GGUF files give transformers' results; damage is reported before weights are read."""

import copy
import hashlib
import os
import shutil
import struct
import threading
from functools import partial

import numpy as np
import pytest
import tiny
import torch
from torch import nn

pytest.importorskip("gguf")
import gguf
import gguf_files
from gguf_files import ARCHITECTURES, TEMPLATE
from transformers import AutoModelForCausalLM, GgufConfig

import mlpmem
from mlpmem.errors import MlpMemError
from mlpmem.fast.compiling import in_background
from mlpmem.loading import capacity
from mlpmem.model.decoder import Decoder
from mlpmem.model.families import FAMILIES
from mlpmem.model.gguf import assemble
from mlpmem.model.gguf import reader as ours
from mlpmem.model.gguf.blocks import KINDS, dense, groups
from mlpmem.model.gguf.configs import CONFIGS
from mlpmem.model.prompts import chat_ids

IDS = torch.tensor([[0, 9, 40, 7, 12, 90, 33]])


@pytest.fixture
def llama_file(tmp_path):
    """Return a Llama's GGUF file."""
    return gguf_files.write(tmp_path / "model.gguf", tiny.decoder("llama"))


@pytest.mark.parametrize("number", KINDS)
def test_every_kind_of_block_equals_the_packages_own_dequantisation(number):
    kind = KINDS[number]
    reference = gguf.GGMLQuantizationType(number)
    assert (reference.name, gguf.GGML_QUANT_SIZES[reference]) == (
        kind.name, (kind.block, kind.bytes),
    )  # fmt: skip
    rng = np.random.default_rng(number)
    raw = rng.integers(0, 256, (5, 3 * 256 // kind.block * kind.bytes), dtype=np.uint8)
    # any bytes are valid blocks, except float16 numbers that are not finite
    raw &= np.uint8(0xBF) if kind.dtype else np.uint8(0xFF)
    values = raw
    if kind.dtype is not None:
        values = raw.view({torch.float32: "f4", torch.float16: "f2"}.get(kind.dtype, "u1"))
    with np.errstate(all="ignore"):
        wanted = gguf.dequantize(values, reference)
    found = dense(torch.from_numpy(raw), kind).numpy()
    assert found.shape == (5, 768)
    np.testing.assert_array_equal(found, wanted)
    if kind.bits:
        found = groups(torch.from_numpy(raw), kind)
        assert -(2 ** (kind.bits - 1)) <= int(found.q.min()) <= int(found.q.max()) < 2**kind.bits


SHAPES = [  # a family's forms that its files tell apart; elsewhere its usual one
    *((family, {}) for family in ARCHITECTURES if not family.startswith("gemma")),
    # a GGUF file does not have the divisor of Gemma's scores; it is the head size
    *((family, {"query_pre_attn_scalar": 8}) for family in ("gemma2", "gemma3_text")),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    ("falcon", {"bias": True, "tie_word_embeddings": False}),
    ("stablelm", {"use_qkv_bias": True, "qk_layernorm": True, "use_parallel_residual": True}),
    ("qwen3_moe", {"norm_topk_prob": True}),
]


def _varied(family: str, **shape) -> Decoder:
    """Return a random decoder whose norms and biases have an effect."""
    if family == "qwen3_moe":  # a GGUF file does not say so; all of the family have it
        shape = {"norm_topk_prob": True, **shape}
    decoder = tiny.decoder(family, **shape)
    with torch.no_grad():
        for weight in decoder.model.parameters():
            if weight.dim() == 1:
                weight.add_(0.1 * torch.randn_like(weight))
    return decoder


@pytest.mark.parametrize(("family", "shape"), SHAPES)
def test_a_file_gives_the_logits_of_its_original_model(tmp_path, family, shape):
    decoder = _varied(family, **shape)
    path = gguf_files.write(tmp_path / "model.gguf", decoder)
    found = Decoder.load(path)
    assert found.model.config.model_type == ("llama" if family == "mistral" else family)
    assert found.tokenizer_hash == decoder.tokenizer_hash
    wanted, output = decoder.forward(IDS), found.forward(IDS)
    torch.testing.assert_close(output.logits, wanted.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(output.hidden, wanted.hidden, rtol=0, atol=1e-4)


# sizes that transformers' reader assumes, as it does not read them
THEIRS = {
    **dict.fromkeys(("mistral", "stablelm"), {"intermediate_size": 64}), "bloom": {}, "falcon": {},
    "qwen2_moe": {"moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632},
    "qwen3_moe": {"moe_intermediate_size": 768},
}  # fmt: skip


@pytest.mark.parametrize("family", THEIRS)
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_a_file_gives_the_logits_of_transformers_own_reader(tmp_path, family, kind):
    path = gguf_files.write(tmp_path / "model.gguf", _varied(family, **THEIRS[family]), kind)
    wanted = _theirs(path)
    torch.testing.assert_close(Decoder.load(path).forward(IDS).logits, wanted, rtol=0, atol=1e-4)


def _theirs(path) -> torch.Tensor:
    """Return the logits that transformers computes from a file."""
    options = {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **options)
    with torch.inference_mode():
        return model(IDS).logits


def test_every_family_with_a_row_and_a_reader_in_transformers_is_read():
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    assert set(GGUF_SUPPORTED_ARCHITECTURES) == set(GGUF_CONFIG_MAPPING)
    theirs = {{"gemma3": "gemma3_text"}.get(name, name) for name in GGUF_CONFIG_MAPPING}
    assert theirs & FAMILIES.keys() == set(ARCHITECTURES)
    assert set(ARCHITECTURES.values()) == set(CONFIGS)


@pytest.mark.parametrize(
    ("split", "pieces"),
    [
        ("default", ["can", "'t", "Ġsay", "Ġ12345", ",", "Ġor", "-"]),
        ("bloom", ["can't", "Ġsay", "Ġ12345", ",", "Ġor-"]),
        ("falcon", ["can", "'", "t", "Ġsay", "Ġ", "123", "45", ",", "Ġor", "-"]),
        ("stablelm2", ["can", "'t", "Ġsay", "Ġ", *"12345", ",", "Ġor", "-"]),
    ],
)
def test_texts_are_split_before_merges_as_the_file_says(tmp_path, split, pieces):
    path = gguf_files.write(tmp_path / "model.gguf", tiny.decoder(), split=split)
    backend = Decoder.load(path).tokenizer.backend_tokenizer
    found = backend.pre_tokenizer.pre_tokenize_str("can't say 12345, or-")
    assert [piece for piece, _ in found] == pieces


def test_experts_and_fused_heads_keep_their_blocks(tmp_path):
    falcon = tiny.decoder("falcon", new_decoder_architecture=True, num_kv_heads=2)
    found = Decoder.load(gguf_files.write(tmp_path / "falcon.gguf", falcon, "Q4_0"))
    layer = found.model.transformer.h[1].self_attention.query_key_value
    assert torch.equal(layer.blocks.read().dense(), layer.weight)
    found = Decoder.load(gguf_files.write(tmp_path / "gpt2.gguf", tiny.decoder("gpt2"), "Q4_1"))
    layer = found.model.transformer.h[1].mlp.c_fc
    assert torch.equal(layer.blocks.read().dense(), layer.weight.T)
    shape = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
    mixture = tiny.decoder("qwen2_moe", **shape)
    found = Decoder.load(gguf_files.write(tmp_path / "mixture.gguf", mixture, "Q8_0"))
    for name, wanted in mixture.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], wanted, rtol=0, atol=0.01)


PLAIN_BLOCKS = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]


@pytest.mark.parametrize("kind", [*PLAIN_BLOCKS, *gguf_files.SCALES])
def test_a_quantised_file_gives_transformers_logits(tmp_path, kind):
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96}
    if kind in gguf_files.SCALES:  # blocks of 256
        shape = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    decoder = tiny.decoder("llama", **shape)
    path = gguf_files.write(tmp_path / "model.gguf", decoder, kind)
    wanted, found = _theirs(path).log_softmax(-1), Decoder.load(path)
    torch.testing.assert_close(found.forward(IDS).logits.log_softmax(-1), wanted, rtol=0, atol=1e-4)
    layer = found.model.model.layers[1].self_attn.q_proj
    if KINDS[int(gguf.GGMLQuantizationType[kind])].bits:
        assert torch.equal(layer.blocks.read().dense(), layer.weight)
    else:
        assert not hasattr(layer, "blocks")


def test_llama_3s_frequencies_are_divided_by_the_files_factors(tmp_path):
    decoder = tiny.decoder("llama")
    factors = np.array([1, 2, 4, 8], dtype=np.float32)
    write = gguf.GGUFWriter.write_header_to_file

    def with_factors(writer):
        writer.add_tensor("rope_freqs.weight", factors)
        return write(writer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_header_to_file", with_factors)
        path = gguf_files.write(tmp_path / "model.gguf", decoder)
    plain = decoder.model.model.rotary_emb.inv_freq
    found = Decoder.load(path).model.model.rotary_emb.inv_freq
    torch.testing.assert_close(found, plain / torch.from_numpy(factors))


def test_a_chat_uses_the_files_template_and_end_tokens(tmp_path):
    decoder = tiny.decoder("llama")
    ends = {"tokenizer.ggml.eot_token_id": ("add_uint32", 7)}
    path = gguf_files.write(tmp_path / "model.gguf", decoder, template=TEMPLATE, **ends)
    found = Decoder.load(path)
    assert found.eos_ids == {1, 7}
    assert found.tokenizer.bos_token == "<s>" and found.special_ids == {0, 1}
    turn = found.tokenizer.encode("Peru", add_special_tokens=False)
    assert chat_ids(found, [("Peru", "")])[-len(turn) - 3 :] == [0, *turn, 1, 0]


def test_a_model_of_parts_reads_a_file_and_builds_keys_with_it(llama_file, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("The capital of Peru is Lima. " * 40, encoding="utf-8")
    model = mlpmem.load(decoder=llama_file, text=text)
    assert model.systems == ["lm", "knn"]
    trace = model.generate("The capital of Peru is", "knn", lmbda=1.0, max_new_tokens=5)
    assert trace.text == " Lima"
    assert np.isfinite(model.score("Peru is Lima").nll["lm"]).all()


def test_the_number_of_parameters_is_read_from_the_header(llama_file):
    wanted = sum(weight.numel() for weight in tiny.decoder("llama").model.parameters())
    assert capacity.parameters_in(llama_file) == wanted
    assert Decoder.load(llama_file, dtype=torch.bfloat16).model.dtype == torch.bfloat16


def _another(path):
    """Return another file of the same shape, beside a Llama's."""
    return gguf_files.write(path.with_name("other.gguf"), tiny.decoder("llama", seed=5))


def _read_later(tmp_path):
    """Return (a file of 4-bit blocks, one of its layers, whose blocks are not read yet)."""
    shape = {"hidden_size": 64, "intermediate_size": 96}
    path = gguf_files.write(tmp_path / "model.gguf", tiny.decoder("llama", **shape), "Q4_0")
    return path, Decoder.load(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows does not replace an open file")
def test_blocks_come_from_the_first_file_if_another_takes_its_name(tmp_path):
    path, decoder = _read_later(tmp_path)
    wanted = hashlib.sha256(path.read_bytes()).hexdigest()
    os.replace(_another(path), path)
    for layer in decoder.model.modules():
        if hasattr(layer, "blocks"):
            assert torch.equal(layer.blocks.read().dense(), layer.weight)
    assert decoder.gguf_sha256 == wanted != hashlib.sha256(path.read_bytes()).hexdigest()
    tuned = copy.deepcopy(decoder.model)
    assert tuned.gguf is decoder.model.gguf


def test_a_file_that_is_written_to_is_not_read_on(tmp_path):
    path, decoder = _read_later(tmp_path)
    blocks = decoder.model.model.layers[0].self_attn.o_proj.blocks
    with path.open("r+b") as file:
        file.seek(blocks.place.start)
        file.write(b"other")
    for read in (blocks.read, lambda: decoder.gguf_sha256):
        with pytest.raises(MlpMemError, match=r"model.gguf was changed or replaced .* load it aga"):
            read()


@pytest.mark.skipif(os.name == "nt", reason="Windows does not replace an open file")
def test_a_file_that_is_replaced_while_it_loads_is_refused(llama_file, monkeypatch):
    def replace(header):
        os.replace(_another(llama_file), llama_file)
        return read_tokenizer(header)

    read_tokenizer = assemble.read_tokenizer
    monkeypatch.setattr(assemble, "read_tokenizer", replace)
    with pytest.raises(MlpMemError, match="model.gguf was changed or replaced while it was read"):
        Decoder.load(llama_file)


def test_blocks_that_changed_leave_the_packed_form_in_use(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLPMEM_COMPILE", "1")
    monkeypatch.setattr("mlpmem.fast.compiling.compile_apart", lambda name: None)
    path, decoder = _read_later(tmp_path)
    path.write_bytes(path.read_bytes())
    read, used = decoder.model.model.layers[0].self_attn.o_proj.blocks.read, []
    other = nn.Linear(1, 1)
    for use, user in ((read, decoder), (read, decoder), (partial(used.append, 1), other)):
        in_background("float32", use, user)
        for thread in threading.enumerate():
            if thread.name == "compile":
                thread.join(60)
    assert capsys.readouterr().err.count("model.gguf was changed or replaced") == 1
    assert used == [1]  # another model's kernels are compiled as before


def _refusal(path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours, "read_rows", lambda *_: pytest.fail("weights were read"))
        with pytest.raises(MlpMemError) as error:
            Decoder.load(path)
    return str(error.value)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_refused_by_name_at_every_length(llama_file, part):
    data = llama_file.read_bytes()
    llama_file.write_bytes(data[: int(part * len(data))])
    message = _refusal(llama_file)
    assert "model.gguf" in message and ("again" in message or "begin" in message)


def test_damage_anywhere_in_the_header_raises_only_our_error(llama_file):
    data = llama_file.read_bytes()
    end = min(place.start for place in ours.read_header(llama_file).places.values())
    rng = np.random.default_rng(0)
    for at in rng.integers(0, end, 300):
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(rng.integers(8))
        llama_file.write_bytes(damaged)
        try:
            ours.read_header(llama_file)
        except MlpMemError as error:
            assert "model.gguf" in str(error)


def test_unsupported_files_are_refused_with_the_reason(tmp_path, llama_file, monkeypatch):
    llama = tiny.decoder("llama")
    parts = {"split.count": ("add_uint16", 3)}
    message = _refusal(gguf_files.write(tmp_path / "parts.gguf", llama, **parts))
    assert "3 parts" in message and "llama-gguf-split --merge" in message
    experts = {"llama.expert_count": ("add_uint32", 8)}
    message = _refusal(gguf_files.write(tmp_path / "experts.gguf", llama, **experts))
    assert "a mixture of experts of the family 'llama'" in message
    assert "must be of qwen2moe or qwen3moe" in message
    data = llama_file.read_bytes()
    for old, new, wanted in (
        (b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama",
         b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0mamba", "family 'mamba'"),
        (b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz", "no tokenizer"),
        (b"blk.1.attn_k.weight", b"blk.1.attn_j.weight", "lacks 1 tensors, such as blk.1.attn_k"),
    ):  # fmt: skip
        assert data.count(old) == 1
        llama_file.write_bytes(data.replace(old, new))
        assert wanted in _refusal(llama_file)
    kind = dict(KINDS)
    kind.pop(0)
    monkeypatch.setattr(ours, "KINDS", kind)
    llama_file.write_bytes(data)
    message = _refusal(llama_file)
    assert "ggml type 0" in message and "Q4_K" in message


def test_other_files_in_the_folder_are_ignored(llama_file, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    shutil.copy(llama_file, folder / "one.GGUF")
    (folder / "config.json").write_text("{}")
    assert Decoder.load(folder / "one.GGUF").num_layers == tiny.LAYERS


def _rewritten(path, **changed):
    """Write a file again with other values or shapes in its header; return its path."""
    reader = gguf.GGUFReader(path)
    data = bytearray(path.read_bytes())
    for name, value in changed.items():
        if name in reader.fields:
            field = reader.fields[name]
            at = field.offset + sum(part.nbytes for part in field.parts[: field.data[0]])
        else:
            field = next(t for t in reader.tensors if t.name == name).field
            at = field.offset + sum(part.nbytes for part in field.parts[:3])
        data[at : at + value.nbytes] = value.tobytes()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("layers", [0, 2**31, 2**32 - 1])
def test_an_impossible_number_of_layers_is_refused_before_a_model_is_built(llama_file, layers):
    message = _refusal(_rewritten(llama_file, **{"llama.block_count": np.uint32(layers)}))
    assert f"it has 30 tensors, the header says {layers} layers" in message


@pytest.mark.parametrize(
    ("family", "changed", "wanted"),
    [
        ("qwen3_moe", {"qwen3moe.expert_count": np.uint32(5)},
         "blk.0.ffn_gate_exps.weight is [4, 24, 32], the header says [5, 24, 32]"),
        ("qwen2_moe", {"qwen2moe.expert_used_count": np.uint32(9)}, "9 of 4 experts per token"),
        ("qwen2_moe", {"blk.1.ffn_up_exps.weight": np.array([24, 32, 4], np.uint64)},
         "blk.1.ffn_up_exps.weight is [4, 32, 24], the header says [4, 24, 32]"),
        ("falcon", {"falcon.attention.head_count_kv": np.uint32(3)}, "3 key heads for 4 heads"),
        ("bloom", {"bloom.attention.head_count_kv": np.uint32(0)}, "0 key heads for 4 heads"),
        ("bloom", {"bloom.attention.head_count_kv": np.uint32(2)}, "2 key heads for 4 heads"),
        ("llama", {"llama.attention.head_count": np.uint32(32),
                   "llama.attention.head_count_kv": np.uint32(16),
                   "llama.attention.key_length": np.uint32(1)}, "its heads have 1 numbers"),
        ("phi3", {"phi3.attention.head_count": np.uint32(32),
                  "phi3.attention.head_count_kv": np.uint32(16)}, "rotates 8 of 1 numbers"),
        ("bloom", {"bloom.attention.head_count": np.uint32(5),
                   "bloom.attention.head_count_kv": np.uint32(5)}, "its configuration"),
        ("stablelm", {"stablelm.rope.dimension_count": np.uint32(9)}, "rotates 9 of 8 numbers"),
        ("stablelm", {"blk.2.attn_q_norm.weight": np.array([16, 2], np.uint64)},
         "blk.2.attn_q_norm.weight is [2, 16], the header says [2, 8]"),
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit_the_tensors_are_refused(tmp_path, family, changed, wanted):
    shape = {"qk_layernorm": True} if family == "stablelm" else {}
    path = gguf_files.write(tmp_path / "model.gguf", tiny.decoder(family, **shape))
    assert wanted in _refusal(_rewritten(path, **changed))


def test_an_impossible_rotation_is_refused(tmp_path):
    path = gguf_files.write(tmp_path / "model.gguf", tiny.decoder("phi3"))
    message = _refusal(_rewritten(path, **{"phi3.rope.dimension_count": np.uint32(264)}))
    assert "it rotates 264 of 8 numbers per head" in message


def test_a_transposed_weight_is_refused_by_name(llama_file):
    shape = np.array([48, 32], np.uint64)  # the innermost first
    message = _refusal(_rewritten(llama_file, **{"blk.0.ffn_gate.weight": shape}))
    assert "blk.0.ffn_gate.weight is [32, 48], the header says [48, 32]" in message


def test_values_of_another_type_are_refused_or_ignored(tmp_path, llama_file):
    llama = tiny.decoder("llama")
    parts = {"split.count": ("add_string", "2")}
    assert Decoder.load(gguf_files.write(tmp_path / "text.gguf", llama, **parts)).num_layers == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            gguf.GGUFWriter, "add_token_list", lambda w, _: w.add_uint32("tokenizer.ggml.tokens", 7)
        )
        message = _refusal(gguf_files.write(tmp_path / "words.gguf", llama))
    assert "words.gguf has no tokenizer" in message
    lists = struct.pack("<IQ", 9, 1) * 5000
    header = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<I", 9)
    llama_file.write_bytes(header + lists)
    assert "its header is truncated or altered" in _refusal(llama_file)


def test_frequencies_of_another_size_are_refused(tmp_path):
    write = gguf.GGUFWriter.write_header_to_file

    def with_factors(writer):
        writer.add_tensor("rope_freqs.weight", np.ones(3, np.float32))
        return write(writer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_header_to_file", with_factors)
        path = gguf_files.write(tmp_path / "model.gguf", tiny.decoder("llama"))
    assert "rope_freqs.weight is [3], and must be [4]" in _refusal(path)


def test_a_path_that_is_no_gguf_file_names_the_next_step(llama_file, tmp_path):
    renamed = shutil.copy(llama_file, tmp_path / "model.bin")
    absent = tmp_path / "absent.gguf"
    for path, wanted in (
        (tmp_path, f"is a folder of GGUF files; give one of them, such as {llama_file}"),
        (renamed, "is a GGUF file under another name; rename it so that it ends with .gguf"),
        (absent, "absent.gguf' does not exist; check the path of the GGUF file"),
        ("absent.gguf", "absent.gguf' does not exist"),  # it could be a Hub id
    ):
        with pytest.raises(MlpMemError) as error:
            mlpmem.load(decoder=path)
        assert wanted in str(error.value)
