"""The stages decoder and memory: order of rows, resumption, saved files, and workers."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import tiny_run
import torch

from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.model.families import layers_of
from mlpmem.model.memory import Memory
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.documents import Documents
from train.config.tables import DecoderConfig, MemoryFitConfig, OptimizerConfig, TargetsConfig
from train.files import read_json, write_json
from train.fit import loop
from train.fit import workers as launch
from train.fit.checkpoint import checkpoint_files
from train.fit.memory_start import new_memory, start_as_decoder
from train.run.machine import is_full
from train.run.stage import StageContext
from train.stages import memory as memory_module
from train.stages.decoder import _draw_batches, make_decoder
from train.stages.memory import TargetRows, make_memory, soften
from train.stages.targets import make_targets

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Return the folders of a tiny run with real targets, and two draws of the decoder's text."""
    paths = tiny_run.stages(tmp_path_factory.mktemp("run"))
    config = TargetsConfig(k=12, temperature=20.0, nll_floor=-1.0)
    make_targets(StageContext(paths["targets"], paths, config, 0))
    configs = {"targets": dataclasses.asdict(config), "datastore": {"depth": -1}}
    for name, values in configs.items():
        manifest = read_json(paths[name] / "manifest.json")
        write_json(paths[name] / "manifest.json", manifest | {"config": values})
    for draw in range(2):
        tiny.documents().save(paths["corpus"] / f"decoder_{draw:02d}")
    tiny.tokenizer().save_pretrained(paths["corpus"] / "tokenizer")
    return paths


# The memory


def rows_of(inputs, **config):
    recipe = MemoryFitConfig(
        **{"batch": 16, "epochs": 3, "noise": 0.0, "validation_rows": 0} | config
    )
    return TargetRows(inputs["datastore"], inputs["targets"], recipe, 1)


def found_rows(batch, store):
    """Return the entries of a batch without noise."""
    names = [key.tobytes() for key in np.asarray(store.keys)]
    entry = {name: i for i, name in enumerate(zip(names, store.values.tolist(), strict=True))}
    keys = [key.tobytes() for key in batch["keys"].numpy().astype(np.float16)]
    return [entry[name] for name in zip(keys, batch["targets"].tolist(), strict=True)]


def test_every_epoch_has_every_row_once_in_a_new_order(inputs):
    rows, store = rows_of(inputs), Datastore.load(inputs["datastore"])
    assert rows.steps == 3 * (len(store) // 16)
    orders = []
    for epoch in range(3):
        steps = range(epoch * rows.per_epoch, (epoch + 1) * rows.per_epoch)
        orders.append([i for s in steps for i in found_rows(rows.batch(s, 0, 1), store)])
        assert sorted(orders[-1]) == list(range(len(store)))
    assert orders[0] != orders[1] != orders[2]


def test_processes_share_the_rows_of_a_step(inputs):
    rows, store = rows_of(inputs), Datastore.load(inputs["datastore"])
    whole = found_rows(rows.batch(5, 0, 1), store)
    parts = [found_rows(rows.batch(5, rank, 3), store) for rank in range(3)]
    assert Counter(whole) == Counter(i for part in parts for i in part)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_sparse_targets_of_a_batch_are_those_of_its_rows(inputs):
    rows, store = rows_of(inputs), Datastore.load(inputs["datastore"])
    offsets, ids, probs = (
        np.load(inputs["targets"] / f"{n}.npy") for n in ("offsets", "token_ids", "probs")
    )
    batch = rows.batch(2, 0, 1)
    assert not batch["token_ids"].is_floating_point() and batch["probs"].is_floating_point()
    for i, row in enumerate(found_rows(batch, store)):
        at = slice(offsets[row], offsets[row + 1])
        size = at.stop - at.start
        assert batch["token_ids"][i, :size].tolist() == ids[at].tolist()
        assert batch["probs"][i, :size].tolist() == probs[at].astype(np.float32).tolist()
        assert not batch["probs"][i, size:].any() and not batch["token_ids"][i, size:].any()
        assert float(batch["probs"][i].sum()) == pytest.approx(1.0, abs=5e-3)


def test_a_softened_memory_has_the_distribution_of_its_logits_over_the_temperature():
    memory = tiny.memory(tiny.decoder())
    hidden = torch.randn(5, memory.config.hidden_size)
    expected = (memory(hidden) / 1.7).log_softmax(-1)
    assert soften(memory, 1.7) is memory
    torch.testing.assert_close(memory(hidden).log_softmax(-1), expected)


def test_noise_depends_on_the_step_and_has_the_configured_size(inputs):
    quiet, noisy = rows_of(inputs), rows_of(inputs, noise=0.5)
    noise = noisy.batch(3, 0, 1)["keys"] - quiet.batch(3, 0, 1)["keys"]
    assert torch.equal(noisy.batch(3, 0, 1)["keys"], noisy.batch(3, 0, 1)["keys"])
    assert float(noise.std()) == pytest.approx(noisy.noise, rel=0.1)
    assert noisy.noise == pytest.approx(0.5 * float(np.asarray(noisy.keys, np.float32).std()))


MEMORY = MemoryFitConfig(
    blocks=1, intermediate_size=48, epochs=12, batch=32, processes=1, dtype="float32",
    optimizer=OptimizerConfig(lr=1e-2),
)  # fmt: skip


def train_memory(folder, inputs, config=MEMORY):
    folder.mkdir(exist_ok=True)
    return make_memory(StageContext(folder, inputs, config, 0))


def test_the_memory_stage_learns_and_its_memory_binds_to_the_decoder(inputs, tmp_path):
    counts = train_memory(tmp_path / "memory", inputs)
    history = read_json(tmp_path / "memory/history.json")
    assert history[-1]["loss"] == counts["loss"] < history[0]["loss"] / 2
    assert {"kl", "ce"} <= history[0].keys()
    assert counts["tokens"] == history[-1]["step"] * 32 and counts["earlier_seconds"] == 0.0
    files = sorted({p.name for p in (tmp_path / "memory").iterdir()} - set(counts["scratch"]))
    assert files == ["config.json", "history.json", "model.safetensors", "training.png"]
    memory = Memory.load(tmp_path / "memory")
    memory.bind(Decoder.load(inputs["decoder"]))
    assert (memory.config.knn_k, memory.config.knn_temperature) == (12, 20.0)
    assert memory.config.tokenizer_hash and memory.config.depth == -1


def test_a_killed_memory_stage_resumes_to_the_same_weights(inputs, tmp_path, monkeypatch):
    train_memory(tmp_path / "whole", inputs)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    batch = TargetRows.batch

    def killed(self, step, rank, world):
        if step == 20:
            raise KeyboardInterrupt
        return batch(self, step, rank, world)

    monkeypatch.setattr(TargetRows, "batch", killed)
    with pytest.raises(KeyboardInterrupt):
        train_memory(tmp_path / "killed", inputs)
    monkeypatch.setattr(TargetRows, "batch", batch)
    counts = train_memory(tmp_path / "killed", inputs)
    assert counts["earlier_seconds"] > 0
    one, other = (Memory.load(tmp_path / name).state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("head", ["decoder", "free", "tied"])
def test_a_new_memory_has_the_head_of_its_recipe(head):
    bound = tiny.decoder("gpt2")
    memory = new_memory(MemoryFitConfig(head=head), bound, -1, 5, 2.0)
    assert torch.equal(memory.lm_head.weight, bound.head_weight) == (head != "free")
    assert memory.lm_head.weight.requires_grad == (head != "tied")
    assert memory.lm_head.weight.data_ptr() != bound.head_weight.data_ptr()
    assert (memory.config.tied_head, memory.config.family) == (head == "tied", "gpt2")


@pytest.mark.parametrize(
    ("family", "norm", "last", "shape", "share"),
    [
        ("llama", "post_attention_layernorm", "norm", {}, 1.0),
        ("gpt2", "ln_2", "ln_f", {}, 1.0),
        (
            "granite", "post_attention_layernorm", "norm",
            {"residual_multiplier": 0.5, "logits_scaling": 0.25}, 0.5,
        ),
        ("gemma", "post_attention_layernorm", "norm", {"hidden_act": "silu"}, 1.0),
    ],
)  # fmt: skip
def test_a_memory_started_as_the_decoder_has_its_logits_for_streams_of_equal_length(
    family, norm, last, shape, share
):
    bound = tiny.decoder(family, **shape)
    with torch.no_grad():  # gains that are not 1
        for name, weight in bound.model.named_parameters():
            if "norm" in name or "ln_" in name:
                weight.add_(0.2 * torch.randn(weight.shape))
    layer = layers_of(bound.model, bound.family)[-1]
    stream = torch.randn(400, bound.hidden_size)
    stream -= stream.mean(1, keepdim=True)
    stream *= 4 / stream.square().mean(1, keepdim=True).sqrt()
    with torch.no_grad():
        keys = getattr(layer, norm)(stream)
        final = getattr(bound.model.base_model, last)(stream + share * layer.mlp(keys))
        logits = bound.model.get_output_embeddings()(final) / bound.logit_divisor
    values = logits.argmax(1)
    memory = new_memory(MemoryFitConfig(blocks=2, intermediate_size=160), bound, -1, 5, 2.0)
    assert (memory(keys).argmax(1) == values).float().mean() < 0.7
    factor = start_as_decoder(memory, bound, keys, values)
    assert factor == 0.25 * share
    assert (memory(keys).argmax(1) == values).float().mean() > 0.9
    assert (memory(keys) - logits).norm() < 0.3 * logits.norm()


def test_a_memory_smaller_than_the_decoders_ffn_stays_unchanged(inputs):
    bound = tiny.decoder("llama")
    memory = new_memory(MemoryFitConfig(blocks=1, intermediate_size=8), bound, -1, 5, 2.0)
    before = {name: weight.clone() for name, weight in memory.state_dict().items()}
    keys = torch.randn(20, bound.hidden_size)
    assert start_as_decoder(memory, bound, keys, torch.zeros(20).long()) == 0
    assert all(torch.equal(weight, before[name]) for name, weight in memory.state_dict().items())


def weights_of(folder):
    return Memory.load(folder).state_dict()


def test_micro_batches_give_the_same_memory(inputs, tmp_path):
    train_memory(tmp_path / "one", inputs, dataclasses.replace(MEMORY, epochs=2))
    train_memory(tmp_path / "micro", inputs, dataclasses.replace(MEMORY, epochs=2, micro_batch=7))
    one, micro = weights_of(tmp_path / "one"), weights_of(tmp_path / "micro")
    for name in one:
        torch.testing.assert_close(one[name], micro[name], rtol=1e-2, atol=2e-3)


def test_held_out_rows_are_not_trained_on_and_their_perplexity_is_logged(inputs, tmp_path):
    rows, store = rows_of(inputs, validation_rows=9), Datastore.load(inputs["datastore"])
    learned = {i for s in range(rows.per_epoch) for i in found_rows(rows.batch(s, 0, 1), store)}
    held = set(np.searchsorted(store.positions, rows.held_out).tolist())
    assert len(held) == 9 and learned == set(range(len(store))) - held
    train_memory(tmp_path, inputs, dataclasses.replace(MEMORY, epochs=2, validation_rows=9))
    history = read_json(tmp_path / "history.json")
    assert all({"val_nll", "val_ppl", "mix_ppl"} <= line.keys() for line in history)


def test_the_best_weights_on_validation_can_be_kept(inputs, tmp_path, monkeypatch):
    nlls = iter([3.0, 1.0] + [2.0] * 100)
    kept = []

    def measure(self, memory):
        nll = next(nlls)
        if nll == 1.0:
            kept.append(memory.lm_head.weight.detach().clone())
        return {"val_nll": nll}

    monkeypatch.setattr(memory_module.Validation, "measure", measure)
    counts = train_memory(tmp_path, inputs, dataclasses.replace(MEMORY, keep="best"))
    assert torch.equal(weights_of(tmp_path)["lm_head.weight"], kept[0].half().float())
    assert memory_module.BEST in counts["scratch"], "needed only to resume"


def test_a_tied_memory_trains_and_binds_to_its_decoder(inputs, tmp_path):
    train_memory(tmp_path, inputs, dataclasses.replace(MEMORY, head="tied", dtype="bfloat16"))
    history = read_json(tmp_path / "history.json")
    assert history[-1]["loss"] < history[0]["loss"]
    memory, decoder = Memory.load(tmp_path), Decoder.load(inputs["decoder"])
    assert torch.equal(memory.bind(decoder).lm_head.weight, decoder.head_weight)


def test_a_row_with_empty_targets_stops_the_run_with_its_entry(inputs, monkeypatch):
    rows = rows_of(inputs)
    targets_of = rows.targets.rows

    def emptied(at):
        token_ids, probs = targets_of(at)
        return token_ids, np.where(at[:, None] == 17, 0, probs)

    monkeypatch.setattr(rows.targets, "rows", emptied)
    with pytest.raises(MlpMemError, match=r"step \d+: 1 rows have empty targets.*entry 17;"):
        for step in range(rows.per_epoch):
            rows.batch(step, 0, 1)


def test_searched_targets_give_the_same_batches_as_stored_ones(inputs):
    stored = rows_of(inputs)
    searched = rows_of(inputs)
    manifest = read_json(inputs["targets"] / "manifest.json")["config"]
    config = TargetsConfig(
        **{k: v for k, v in manifest.items() if k != "seed"} | {"rows": "searched"}
    )
    store = Datastore.load(inputs["datastore"])
    searched.targets = memory_module.open_targets(store, inputs["targets"], config)
    one, other = stored.batch(1, 0, 1), searched.batch(1, 0, 1)
    dense = [
        torch.zeros(len(b["keys"]), 300).scatter_add_(1, b["token_ids"].long(), b["probs"].float())
        for b in (one, other)
    ]
    assert torch.equal(one["keys"], other["keys"])
    torch.testing.assert_close(*dense, rtol=2e-3, atol=1e-4)


def test_a_missing_tracker_is_named(inputs, tmp_path):
    with pytest.raises(MlpMemError, match="tracker 'nobody' is not installed"):
        train_memory(tmp_path, inputs, dataclasses.replace(MEMORY, trackers=("nobody",)))


@pytest.mark.slow
def test_two_processes_train_the_same_memory_as_one(inputs, tmp_path):
    config = dataclasses.replace(MEMORY, epochs=3, batch=31, noise=0.1)
    train_memory(tmp_path / "one", inputs, config)
    train_memory(tmp_path / "two", inputs, dataclasses.replace(config, processes=2))
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-2, atol=2e-3)


# The decoder

DECODER = DecoderConfig(
    hidden_size=32, layers=2, heads=4, intermediate_size=48, max_positions=96, row=64, batch=128,
    processes=1, dtype="float32", optimizer=OptimizerConfig(lr=1e-2, muon_lr=2e-2),
)  # fmt: skip


def test_the_decoder_sees_every_passage_of_every_draw_once(inputs):
    draws = [inputs["corpus"] / f"decoder_{i:02d}" for i in range(2)]
    documents = Documents.load(draws[0])
    batches, steps = _draw_batches(draws, DECODER, 3)
    assert steps == 2 * max(1, len(documents.tokens) // 128) >= 2
    cut = [documents.passage(p)[:64].tolist() for p in range(len(documents))]
    expected = Counter(pair for ids in cut for pair in pairwise(ids))
    for draw in range(2):
        counts = Counter()
        for step in range(draw * steps // 2, (draw + 1) * steps // 2):
            for rank in range(2):
                batch = batches(step, rank, 2)
                real = batch["targets"] >= 0
                pairs = zip(batch["ids"][real], batch["targets"][real], strict=True)
                counts.update((int(token), int(target)) for token, target in pairs)
        assert counts == expected


def test_the_decoder_stage_learns_and_its_decoder_loads(inputs, tmp_path):
    many = dataclasses.replace(DECODER, batch=64)
    counts = make_decoder(StageContext(tmp_path, inputs, many, 0))
    history = read_json(tmp_path / "history.json")
    assert counts["loss"] == history[-1]["loss"] < history[0]["loss"]
    decoder = Decoder.load(tmp_path)
    assert decoder.hidden_size == 32 and decoder.vocab_size == len(tiny.tokenizer())
    assert decoder.tokenizer_hash == tiny.decoder().tokenizer_hash
    left = {p.name for p in tmp_path.iterdir()}
    assert "model.safetensors" in left
    checkpoints = {path.name for path in checkpoint_files(Path(launch.CHECKPOINT))}
    assert set(counts["scratch"]) == {"job.json", *checkpoints}
    assert left & set(counts["scratch"]) == {"job.json", launch.CHECKPOINT}


def test_a_failed_worker_is_reported_and_its_checkpoint_stays(tmp_path, monkeypatch):
    (tmp_path / launch.CHECKPOINT).write_bytes(b"kept")
    monkeypatch.setattr(launch, "used_seconds", lambda path: 1.0)
    failed = type("Done", (), {"returncode": 1})
    commands = []

    def run(command, env, preexec_fn):
        commands.append((command, env))
        return failed

    monkeypatch.setattr(launch.subprocess, "run", run)
    monkeypatch.setattr(launch.torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        MlpMemError, match="train.stages.memory: a worker failed.*Run the same command again"
    ):
        launch.run_workers("train.stages.memory", tmp_path, {"config": {"batch": 3}}, 2)
    assert (tmp_path / launch.CHECKPOINT).read_bytes() == b"kept"
    command, environment = commands[0]
    assert command[-3:] == ["-m", "train.stages.memory", str(tmp_path)]
    assert command[command.index("--nproc-per-node") + 1] == "2"
    assert environment["OMP_NUM_THREADS"] == "1"


def failing(monkeypatch, before=lambda folder: None):
    """Make the workers fail after calling `before` with their folder."""

    def run(command, env, preexec_fn):
        before(Path(command[-1]))
        return type("Done", (), {"returncode": 1})

    monkeypatch.setattr(launch.subprocess, "run", run)
    monkeypatch.setattr(launch, "used_seconds", lambda path: 0.0)
    monkeypatch.setattr(launch, "die_with_parent", lambda: None)  # the worker is this process
    monkeypatch.setattr(launch.torch.cuda, "is_available", lambda: False)


def test_a_workers_error_message_is_raised(tmp_path, monkeypatch):
    def worker(folder):
        raise MlpMemError("step 7: the loss must be finite; got nan")

    def before(folder):
        monkeypatch.setattr(sys, "argv", ["train.stages.memory", str(folder)])
        with pytest.raises(SystemExit):
            launch.run_worker(worker)

    failing(monkeypatch, before)
    for _ in range(2):
        with pytest.raises(MlpMemError, match="^step 7: the loss must be finite"):
            launch.run_workers("train.stages.memory", tmp_path, {"config": {"batch": 3}}, 2)
        assert not list(tmp_path.glob(launch.FAILED))
    failing(monkeypatch)
    with pytest.raises(MlpMemError, match="a worker failed; its error is above"):
        launch.run_workers("train.stages.memory", tmp_path, {"config": {"batch": 3}}, 2)


def test_workers_report_their_peak_memory(tmp_path, monkeypatch):
    def run(command, env, preexec_fn):
        for rank in range(2):
            write_json(tmp_path / launch.PEAK.replace("*", str(rank)), 10 + rank)
        write_json(tmp_path / "history.json", [{"step": 2, "loss": 1.5}])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(launch.subprocess, "run", run)
    monkeypatch.setattr(launch.torch.cuda, "is_available", lambda: False)
    counts = launch.run_workers("train.stages.memory", tmp_path, {"config": {"batch": 3}}, 2)
    assert counts["workers_memory"] == 21 and not list(tmp_path.glob("peak-*"))
    monkeypatch.setattr(sys, "argv", ["train.stages.memory", str(tmp_path)])
    monkeypatch.setattr(launch, "die_with_parent", lambda: None)
    launch.run_worker(lambda folder: None)
    assert read_json(tmp_path / "peak-0.json") > 2**20


def test_an_interrupted_worker_ends_without_a_traceback(tmp_path, monkeypatch):
    def train(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "die_with_parent", lambda: None)
    monkeypatch.setattr(sys, "argv", ["train.stages.memory", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        launch.run_worker(train)
    assert caught.value.code == 130 and not list(tmp_path.iterdir())


def test_a_worker_that_fails_on_a_full_disk_is_reported_as_such(tmp_path, monkeypatch):
    failing(monkeypatch)
    monkeypatch.setattr(launch.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="disk is full") as caught:
        launch.run_workers("train.stages.memory", tmp_path, {"config": {"batch": 3}}, 2)
    assert is_full(caught.value, tmp_path)


SLEEPER = """
import os, time
from train.fit.workers import run_worker
def sleep(folder):
    (folder / f"worker-{os.getpid()}").touch()
    time.sleep(300)
run_worker(sleep)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_workers_end_with_a_parent_that_is_killed_or_interrupted(name, tmp_path):
    (tmp_path / "sleeper.py").write_text(SLEEPER, encoding="utf-8")
    call = f"run_workers('sleeper', Path({str(tmp_path)!r}), {{}}, 2)"
    code = f"from pathlib import Path; from train.fit.workers import run_workers; {call}"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    assert _until(lambda: len(list(tmp_path.glob("worker-*"))) == 2, 240)
    parent.send_signal(getattr(signal, name))
    parent.wait()
    workers = [Path("/proc", p.name.split("-")[1]) for p in tmp_path.glob("worker-*")]
    assert _until(lambda: not any(p.exists() for p in workers), 60)


def _until(condition, seconds):
    """Return whether a condition becomes true within some seconds."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()
