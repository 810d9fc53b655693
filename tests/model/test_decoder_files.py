"""An untrusted decoder folder is refused or read; it never hangs, leaks or changes answers."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, normalizers, pre_tokenizers

from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.model.lora import add_adapter, save_adapter
from mlpmem.model.memory import Memory
from mlpmem.model.tokenizer import special_ids
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.documents import Documents

SECONDS = 20  # much longer than a refusal on a busy machine, much shorter than reading the folder


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return the folder of a decoder, to be changed."""
    return write(tiny.decoder(), tmp_path / "decoder")


def write(decoder: Decoder, folder: Path) -> Path:
    decoder.model.save_pretrained(folder)
    decoder.tokenizer.save_pretrained(folder)
    return folder


def rewrite(path: Path, **change) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def refused(folder: Path, match: str) -> None:
    """Assert that a folder is refused in time with a message."""
    begin = time.perf_counter()
    with pytest.raises(MlpMemError, match=match):
        Decoder.load(folder)
    assert time.perf_counter() - begin < SECONDS


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this platform")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "x.txt"])
def test_a_pipe_in_place_of_a_file_is_refused(name, folder):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refused(folder, f"{name} is neither a file nor a folder")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this platform")
def test_a_pipe_in_a_memory_documents_or_a_datastore_is_refused(tmp_path):
    decoder = tiny.decoder()
    tiny.memory(decoder).save(tmp_path / "memory")
    tiny.datastore(decoder).save(tmp_path / "datastore")
    for load, name in (
        (Memory.load, "memory/model.safetensors"),
        (Datastore.load, "datastore/positions.npy"),
        (Datastore.load, "datastore/shards.json"),
        (Documents.load, "datastore/documents/tokens.npy"),
    ):
        path = tmp_path / name
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(MlpMemError, match=f"{path.name} is neither a file nor a folder"):
            load(path.parent)
        path.unlink()


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**6}, {"num_hidden_layers": 10**30}, {"n_routed_experts": 10**6},
        {"num_hidden_layers": 1000, "num_local_experts": 1000},
        {"text_config": {"num_hidden_layers": 10**7}},
    ],
)  # fmt: skip
def test_a_million_layers_are_refused_before_anything_is_allocated(change, folder):
    rewrite(folder / "config.json", **change)
    refused(folder, "config.json states .* layers and .* experts; at most 1024 and 4096")


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 2**20, "intermediate_size": 2**20}, {"vocab_size": 2**33},
        {"intermediate_size": 2**40}, {"num_hidden_layers": 1024, "intermediate_size": 2**20},
    ],
)  # fmt: skip
def test_a_config_larger_than_the_weights_is_refused(change, folder):
    rewrite(folder / "config.json", **change)
    refused(folder, "config.json needs .* numbers, the weight files have .* bytes")


@pytest.mark.parametrize("shard", ["../../private.safetensors", "/etc/hostname", "a/b.safetensors"])
def test_an_index_that_names_a_file_elsewhere_is_refused(shard, folder, tmp_path):
    (folder / "model.safetensors").rename(tmp_path / "private.safetensors")
    names = load_file(tmp_path / "private.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "index.json names .*, which is outside it")


def test_a_datastores_index_that_names_a_file_elsewhere_is_refused(tmp_path):
    tiny.datastore(tiny.decoder()).save(tmp_path / "datastore")
    path = tmp_path / "datastore" / "shards.json"
    path.write_text(path.read_text().replace("keys-", "../datastore/keys-"))
    with pytest.raises(MlpMemError, match="names a file outside its folder"):
        Datastore.load(path.parent)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_weight_with_infinity_or_nan_is_named(name, value, folder):
    weights = load_file(folder / "model.safetensors")
    weights[name][3, 4] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, f"{name} in decoder contains infinity or NaN")


def test_large_weights_whose_sum_is_infinite_are_read(folder):
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"].fill_(60_000.0)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert Decoder.load(folder, dtype=torch.float16).head_weight.sum().isinf()
    weights["lm_head.weight"].fill_(70_000.0)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MlpMemError, match="NaN in float16; .* load it in float32"):
        Decoder.load(folder, dtype=torch.float16)
    assert Decoder.load(folder).head_weight[0, 0] == 70_000


def test_an_adapter_in_a_decoders_folder_is_refused(folder):
    save_adapter(add_adapter(tiny.decoder().model, 2), folder)
    refused(folder, "also holds a LoRA adapter .* give that as a column, NAME=FOLDER")


@pytest.mark.parametrize(
    ("name", "size"), [("config.json", 5 * 2**20), ("tokenizer.json", 257 * 2**20)]
)
def test_files_of_unlikely_sizes_are_refused(name, size, folder):
    with (folder / name).open("r+b") as file:
        file.truncate(size)
    refused(folder, f"{name} has {size} bytes, over|config.json")


def doubled(times: int):
    return normalizers.Sequence([normalizers.Replace("a", "aa") for _ in range(times)])


@pytest.mark.parametrize(
    "rules",
    [
        doubled(40), normalizers.Replace("a", "b" * 10**6), normalizers.Prepend("b" * 10**6),
        normalizers.Replace(Regex("b*"), "c" * 10**4),
        normalizers.Sequence([normalizers.NFC()] * 100),
    ],
    ids=range(5),
)  # fmt: skip
def test_a_normalizer_that_explodes_is_refused(rules, tmp_path):
    decoder = tiny.decoder()
    decoder.tokenizer.backend_tokenizer.normalizer = rules
    refused(write(decoder, tmp_path / "d"), "the normalizer of its tokenizer has .* as long")


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "(a*)*(a*)*(a*)*[^a~]"])
def test_a_regular_expression_without_end_is_refused(pattern, tmp_path):
    decoder = tiny.decoder()
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    decoder.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    refused(write(decoder, tmp_path / "d"), "its tokenizer cannot split a long text")


GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def test_common_tokenizer_rules_are_accepted(tmp_path):
    decoder = tiny.decoder()
    backend = decoder.tokenizer.backend_tokenizer
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(GPT4), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Lowercase()]
    )
    loaded = Decoder.load(write(decoder, tmp_path / "d"))
    assert loaded.encode("The  CAPITAL") == loaded.encode("the capital")


def test_a_special_token_that_the_vocabulary_lacks_has_no_id():
    words = tiny.tokenizer()
    incomplete = SimpleNamespace(all_special_ids=[0, None, 1], added_tokens_decoder={})
    assert special_ids(incomplete) == {0, 1} == special_ids(words)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer_config.json", {"model_max_length": {}}),
        ("config.json", {"eos_token_id": [[1]]}), ("config.json", {"eos_token_id": {"a": 1}}),
        ("config.json", {"max_position_embeddings": -3}),
    ],
)  # fmt: skip
def test_an_invalid_value_is_reported_when_the_decoder_is_loaded(file, change, folder):
    rewrite(folder / file, **change)
    refused(folder, "decoder: cannot load 'decoder'")
