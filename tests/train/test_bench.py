"""Benches run at tiny sizes and report figures; a missing peer is named."""

import json

import numpy as np
import pytest
import torch

from mlpmem.errors import MlpMemError
from mlpmem.model.memory import Memory, MemoryConfig
from mlpmem.retrieval.shards import write_index, write_shard
from train.bench import datastore, rows, search, step
from train.bench.__main__ import main
from train.bench.released import released_step
from train.bench.turns import BenchOptions, Figure
from train.config.tables import MemoryFitConfig
from train.stages.memory import make_loss

STEP = step.Shape("tiny", 16, 2, 256, 32, 8)
KEYS = datastore.Shape("tiny", 16, 2, 64, 3, 12, torch.float32)


def test_our_step_runs_repeatedly():
    work = step.our_step(STEP, "float32", "cpu")
    assert work.args[1] == 1
    for _ in range(3):
        work()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside torch
@pytest.mark.slow  # compiling takes half a minute
def test_a_compiled_step_has_the_loss_and_the_gradients_of_an_eager_one():
    results = []
    for compile in ("off", "on"):
        torch.manual_seed(0)
        memory = Memory(MemoryConfig(16, 256, 2, 64, "gpt2"))
        for weight in memory.parameters():
            weight.grad = torch.zeros_like(weight)
        loss = make_loss(memory, MemoryFitConfig(compile=compile))
        batch = step.random_batch(STEP, "cpu")
        value, _ = loss(memory, batch)
        value.backward()
        results.append([value, *(weight.grad for weight in memory.parameters())])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)


def test_the_work_of_the_datastore_bench_is_one_shard_of_all_entries(tmp_path):
    assert KEYS.keys == 3 * 11
    shard = datastore.our_keys(KEYS, "cpu", str(tmp_path))()
    assert shard.entries == KEYS.keys and np.load(tmp_path / shard.file).shape == (KEYS.keys, 16)


@pytest.mark.slow
def test_the_search_bench_searches_a_datastore_of_several_shards(tmp_path):
    keys = search.clustered(300, 8)
    write_index(tmp_path, 8, [write_shard(tmp_path, i, keys[i::2]) for i in range(2)])
    figures = {f.name: f for f in search.bench(BenchOptions(entries=200, keys=tmp_path), (5,))}
    rate, *recalls = (f for name, f in figures.items() if f"{tmp_path.parent.name} 300x8" in name)
    assert rate.value > 0 and [f.value for f in recalls] == [1.0, 1.0]


def test_the_flop_of_a_key_are_those_of_the_layers_before_it():
    one = datastore.Shape("", 8, 1, 64, 3, 10, torch.float32)
    assert one.flop == 2 * 4 * 64 + 4 * 8 * 5  # attention's matrices and products, no FFN, no head


def test_a_missing_peer_is_named(tmp_path):
    with pytest.raises(MlpMemError, match="5b04efb.*mlpGPT2.py"):
        released_step(tmp_path, 16, 2, 64, step.random_batch(STEP, "cpu"), 0.5)


def test_figures_are_printed_as_lines_of_json(monkeypatch, capsys):
    figures = [Figure("a", 3.0, "keys/s", 6.0), Figure("b", 3.0, "MiB", peer=6.0)]
    monkeypatch.setattr(datastore, "bench", lambda options: iter(figures))
    assert main(["datastore", "--json", "--device", "cpu"]) == 0
    one, other = map(json.loads, capsys.readouterr().out.splitlines())
    assert (one["times_floor"], "peer" in one) == (2.0, False)
    assert (other["peer"], other["ratio"]) == (6.0, 2.0)


def test_the_storage_of_the_rows_bench_is_that_of_its_rows():
    token_ids, probs = rows.sparse_rows(*rows.neighbours(8))
    assert len(token_ids) <= rows.ROWS * 8 and float(probs.sum()) == pytest.approx(rows.ROWS, 1e-2)
    assert rows.bytes_per_row(token_ids, probs) == 8 + 4 * len(token_ids) / rows.ROWS


@pytest.mark.slow
def test_the_step_bench_measures_every_dtype_in_turns():
    figures = {f.name: f for f in step.bench(BenchOptions(), (STEP,))}
    assert all(f.value > 0 and f.times_floor > 0 for f in figures.values())
    assert len(figures) == 6 and "step/tiny/bfloat16/tokens" in figures


@pytest.mark.gpu
def test_on_a_gpu_a_step_reaches_45_percent_of_its_matmuls():
    (tokens, *_) = step.bench(BenchOptions(device="cuda"), step.SHAPES["cuda"][:1])
    assert tokens.times_floor < 1 / 0.45
