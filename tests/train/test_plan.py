"""The ledger: formulas against real models and files, refusals, and what it prints."""

import dataclasses

import numpy as np
import pytest
import tiny
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mlpmem.errors import MlpMemError
from mlpmem.model.memory import Memory, MemoryConfig
from mlpmem.retrieval import texts
from train.config import tables
from train.config.corpus import CorpusConfig
from train.config.load import load_recipe
from train.config.tables import Recipe, Stated, TargetsConfig
from train.files import write_json
from train.kinds import text as text_kind
from train.run import ledger as ledgers
from train.run import ledger as plan
from train.run.ledger import check_fits, ledger, number_text, time_text
from train.run.needs import BASE, Need, needs
from train.run.pipeline import STAGES, run
from train.run.sizes import UnknownSizeError, sizes_of
from train.run.stage import run_stage

SHAPE = tables.DecoderConfig(hidden_size=64, layers=3, heads=4, intermediate_size=96)
BIG = Recipe("big", stated=Stated(tokens=10**9), corpus=CorpusConfig(kind="text", vocab_size=1000))


def llama(vocab):
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab, hidden_size=64, num_hidden_layers=3, intermediate_size=96,
            num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True,
        )
    )  # fmt: skip


def test_parameters_equal_the_models_except_norms(tmp_path):
    recipe = dataclasses.replace(BIG, decoder=SHAPE, memory=tables.MemoryFitConfig(blocks=2))
    sizes = sizes_of(recipe, tmp_path)
    true = sum(p.numel() for p in llama(1000).parameters())
    assert sizes.decoder == pytest.approx(true, rel=0.01) and sizes.decoder <= true
    config = MemoryConfig(hidden_size=64, vocab_size=1000, num_layers=2, intermediate_size=1024)
    true = sum(p.numel() for p in Memory(config).parameters())
    assert sizes.memory_parameters == pytest.approx(true, rel=0.01)


def test_an_existing_decoder_is_counted_exactly(tmp_path):
    bound = tiny.decoder("gpt2")
    bound.model.save_pretrained(tmp_path / "decoder")
    sizes = sizes_of(BIG, tmp_path)
    assert sizes.decoder == sum(p.numel() for p in bound.model.parameters())
    ends = bound.model.get_input_embeddings().weight.numel()
    assert sizes.body == sizes.decoder - ends
    assert (sizes.hidden, sizes.vocab) == (tiny.HIDDEN, bound.vocab_size)


def test_sizes_of_finished_stages_come_from_their_files(tmp_path):
    for part, tokens in {"memory": 700, "decoder_00": 500, "decoder_01": 501}.items():
        (tmp_path / "corpus" / part).mkdir(parents=True)
        np.save(tmp_path / "corpus" / part / "tokens.npy", np.zeros(tokens, np.uint16))
    counts = {
        "corpus": {},
        "datastore": {"tokens": 700, "entries": 321},
        "targets": {"tokens": 99, "mean_support": 4.5},
    }
    for name, values in counts.items():
        (tmp_path / name).mkdir(exist_ok=True)
        write_json(tmp_path / name / "manifest.json", {"counts": values})
    sizes = sizes_of(Recipe("mine"), tmp_path)
    assert (sizes.corpus, sizes.learned, sizes.memory) == (1701, 1001, 700)
    assert (sizes.entries, sizes.rows, sizes.support) == (321, 99, 4.5)


def test_local_text_is_sized_by_its_files_and_a_hub_datasets_size_is_unknown(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_bytes(b"x" * 4000)
    corpus = CorpusConfig(kind="text", train=(str(tmp_path / "text"),), shares=(0.1, 0.1))
    sizes = sizes_of(Recipe("mine", corpus=corpus), tmp_path)
    assert (sizes.corpus, sizes.memory, sizes.learned) == (1000, 800, 800)
    nowhere = dataclasses.replace(corpus, tokenizer=str(tmp_path / "none"))
    assert sizes_of(Recipe("mine", corpus=nowhere), tmp_path).corpus == 1000
    far = dataclasses.replace(corpus, train=("hub:owner/name",))
    with pytest.raises(UnknownSizeError, match=r"hub:owner/name is not on.*\[stated\] tokens"):
        sizes_of(Recipe("mine", corpus=far), tmp_path)


def test_a_local_tokenizer_counts_a_sample_of_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "PIECE", 1000)
    monkeypatch.setattr(text_kind, "SAMPLE", 1)
    tiny.tokenizer().save_pretrained(tmp_path / "bytes")
    (tmp_path / "a.txt").write_bytes(b"word " * 800)
    corpus = CorpusConfig(
        kind="text", train=(str(tmp_path / "a.txt"),), tokenizer=str(tmp_path / "bytes")
    )
    assert sizes_of(Recipe("mine", corpus=corpus), tmp_path).corpus == 4000


def test_estimates_equal_the_papers_figures(tmp_path):
    found = needs(load_recipe("estimate-5b-tokens"), tmp_path)
    assert found["datastore"].disk == pytest.approx(41e12, rel=0.01)
    assert found["memory"].flops == pytest.approx(2.3e20, rel=0.02)
    assert found["decoder"].flops == 0


def test_bytes_and_flops_follow_their_formulas(tmp_path):
    recipe = dataclasses.replace(BIG, decoder=SHAPE, targets=TargetsConfig(k=40, easy_share=1.0))
    sizes, found = sizes_of(recipe, tmp_path), needs(recipe, tmp_path)
    assert list(found) == list(STAGES) and sizes.rows == sizes.entries == 10**9
    assert found["datastore"].disk == 10**9 * (2 * 64 + 8 + 4 + 2)
    assert found["datastore"].flops == 2 * 3 * (4 * 64**2 + 3 * 64 * 96) * 10**9
    assert found["targets"].disk == 10**9 * (16 + 10 * 4)
    epochs = recipe.memory.epochs
    assert found["memory"].flops == 6 * sizes.memory_parameters * 10**9 * epochs
    less = dataclasses.replace(recipe, stated=Stated(tokens=10**6))
    small = needs(less, tmp_path)["targets"]
    assert small.flops == 2 * 10**6 * 10**6 * 64  # every entry is a row, so no nll is needed
    half = dataclasses.replace(less, targets=TargetsConfig(k=40, easy_share=0.0))
    searched = 2 * sizes_of(half, tmp_path).rows * 10**6 * 64
    assert needs(half, tmp_path)["targets"].flops == searched + 2 * sizes.decoder * 10**6


def test_an_inverted_files_flop_include_its_training_and_memory_its_codes(tmp_path):
    recipe = dataclasses.replace(BIG, decoder=SHAPE, targets=TargetsConfig(k=40, easy_share=1.0))
    found, entries, size, lists = needs(recipe, tmp_path)["targets"], 10**9, 64, 126491
    vectors = entries * lists + 10 * 64 * lists * lists  # assignment, and ten rounds of k-means
    vectors += entries * (lists + 32 * entries / lists)  # lists compared, then the entries of 32
    assert found.flops == pytest.approx(2 * vectors * size, rel=1e-4)
    assert found.memory == pytest.approx(entries * (8 + 64), rel=0.01)  # 64 bytes of code


def test_the_datastores_memory_does_not_grow_beyond_a_shard_of_keys(tmp_path):
    wide = dataclasses.replace(SHAPE, hidden_size=1024)
    narrow = needs(dataclasses.replace(BIG, decoder=SHAPE), tmp_path)["datastore"]
    wider = needs(dataclasses.replace(BIG, decoder=wide), tmp_path)["datastore"]
    assert wider.disk > 10 * narrow.disk
    assert (
        wider.memory - narrow.memory
        < 4 * sizes_of(dataclasses.replace(BIG, decoder=wide), tmp_path).decoder
    )


# Refusals


@pytest.mark.parametrize(
    ("free", "total", "message"),
    [
        (10**9, 10**12, r"corpus: it needs about 5 GB of disk .*\(4 GB stay\); 1 GB are free"),
        (10**12, 10**9, "corpus: it needs about 3 GB of memory; this device has 1 GB"),
    ],
)
def test_a_stage_that_cannot_fit_is_refused_before_any_file_is_written(
    free, total, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(plan, "free_disk", lambda root: free)
    monkeypatch.setattr(plan, "host_memory", lambda: total)
    monkeypatch.setattr(plan, "gpu_memory", lambda: None)
    need = Need("corpus", 5, disk=4 * 10**9, working=5 * 10**9, memory=3 * 10**9)
    with pytest.raises(MlpMemError, match=message):
        run_stage(tmp_path, "corpus", CorpusConfig(), (), pytest.fail, 0,
                  plan=lambda: check_fits(need, tmp_path))  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == [".locks"]


@pytest.mark.parametrize(
    ("gpu", "host", "message"),
    [(10, 2, "GPU has 10 B"), (40, 2, None), (40, 1, "2 B of memory; this machine has 1 B")],
)
def test_gpu_memory_and_main_memory_are_checked_separately(
    gpu, host, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(plan, "gpu_memory", lambda: gpu)
    monkeypatch.setattr(plan, "host_memory", lambda: host)
    need = Need("memory", 5, memory=32, host=2)
    if message is None:
        assert check_fits(need, tmp_path)["host"] == 2
        return
    with pytest.raises(MlpMemError, match=message):
        check_fits(need, tmp_path)


def test_memory_counts_one_model_per_training_process(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def with_processes(count):
        recipe = dataclasses.replace(
            BIG, decoder=dataclasses.replace(SHAPE, processes=count),
            memory=dataclasses.replace(BIG.memory, processes=count),
        )  # fmt: skip
        return needs(recipe, tmp_path), sizes_of(recipe, tmp_path)

    (one, sizes), (three, _) = with_processes(1), with_processes(3)
    assert three["memory"].memory - one["memory"].memory == 2 * (
        BASE + 20 * sizes.memory_parameters + 4 * sizes.decoder + 24 * sizes.rows
    )
    assert all(0 < need.host <= need.memory for need in three.values() if need.tokens)


def test_files_of_a_killed_run_count_as_written(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "free_disk", lambda root: 600)
    (tmp_path / "corpus.partial").mkdir()
    (tmp_path / "corpus.partial/part").write_bytes(b"x" * 500)
    check_fits(Need("corpus", 5, working=1000), tmp_path)
    with pytest.raises(MlpMemError, match="610 B of disk"):
        check_fits(Need("corpus", 5, working=1110), tmp_path)


def test_a_recipe_with_stated_sizes_does_not_run(tmp_path):
    with pytest.raises(MlpMemError, match="python -m train plan big` and does not run"):
        run("corpus", BIG, tmp_path)
    assert not list(tmp_path.iterdir())


# What is printed


def test_the_ledger_has_one_line_per_stage_with_estimate_and_measurement(tmp_path):
    before = ledger(load_recipe("tiny"), tmp_path, tflops=0.1)
    working = [stage for stage in STAGES if stage != "controls"]  # tiny has none
    assert [line.split()[0] for line in before[3:]] == [*working, "all"]
    assert all(line.endswith("|") for line in before[3:])
    need = dataclasses.asdict(Need("corpus", 3_000_000, disk=8 * 10**6, working=9 * 10**6))
    (tmp_path / "corpus").mkdir()
    manifest = {"need": need, "seconds": 432.1, "bytes": 7_654_321, "peak_memory_bytes": 5 * 10**8}
    write_json(tmp_path / "corpus/manifest.json", manifest | {"counts": {}})
    (tmp_path / "corpus/memory").mkdir()
    np.save(tmp_path / "corpus/memory/tokens.npy", np.zeros(5, np.uint16))
    line = ledger(load_recipe("tiny"), tmp_path, tflops=0.1)[3]
    assert line.split() == [
        "corpus", "3", "M", "8", "MB", "9", "MB", "0", "B", "10", "s",
        "|", "7.2", "min", "7.65", "MB", "500", "MB",
    ]  # fmt: skip


def test_this_device_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(ledgers, "PROBE", 2**20)
    monkeypatch.setattr(ledgers, "matmul_rate", lambda kind, dtype: float(dtype.itemsize))
    device = ledgers.measure(tmp_path / "not/yet/there", ["bfloat16", "float32"])
    assert device.rates == {"bfloat16": 2.0, "float32": 4.0}
    assert 2**10 < device.disk_rate < 2**40 and device.disk > 0 and device.memory > 2**30
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
def test_a_gpu_is_measured(tmp_path):
    device = ledgers.measure(tmp_path, ["bfloat16"])
    assert device.name == torch.cuda.get_device_name() and device.rates["bfloat16"] > 1e13


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (41.06e12, "41.1 T"),
        (2.31e20, "231 E"),
        (5e26, "5e+05 Z"),
    ],
)
def test_numbers_are_short(value, text):
    assert number_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.123, "0.12 s"), (42.4, "42 s"), (150, "2.5 min"), (7300, "2.03 h"), (10**8, "3.17 years"),
     (7_200_000, "2,000 h"), (10**13, "316,881 years")],
)  # fmt: skip
def test_times_are_short(seconds, text):
    assert time_text(seconds) == text
