"""A killed and resumed run equals an uninterrupted one; a loss that is not finite stops a run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from mlpmem.errors import MlpMemError
from train.config.tables import OptimizerConfig
from train.fit import loop
from train.fit.checkpoint import discard, previous, used_seconds
from train.fit.loop import fit

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
CONFIG = OptimizerConfig(lr=0.05, muon_lr=0.05)


def net(seed=1, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 4)).to(dtype)


def batches(step, rank, world):
    """Return the share of one process of a step's eight rows."""
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(1000 + step))
    return {"x": x[rank::world], "targets": (x.sum(1) > 0).long()[rank::world]}


def plain_loss(model, batch):
    dtype = next(model.parameters()).dtype
    logits = model(batch["x"].to(dtype)).float()
    ce = F.cross_entropy(logits, batch["targets"], reduction="sum")
    return ce, {"ce": ce}


def killed_loss(at, error=KeyboardInterrupt):
    """Return a loss that raises at its call number `at`, counted from 0."""
    calls = iter(range(10**6))

    def loss(model, batch):
        if next(calls) == at:
            raise error
        return plain_loss(model, batch)

    return loss


def run(model, path, loss=plain_loss, steps=STEPS):
    return fit(model, batches, loss, steps, CONFIG, path / "checkpoint.safetensors", "test")


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kills", [(5,), (1, 0, 7)])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(dtype, kills, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = net(0, dtype)
    log = run(whole, tmp_path / "a")
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)  # after every step
    for seed, kill in enumerate(kills):
        with pytest.raises(KeyboardInterrupt):
            run(net(seed, dtype), tmp_path / "b", killed_loss(kill))
    resumed = net(99, dtype)
    again = run(resumed, tmp_path / "b")
    assert same(whole, resumed)
    assert [row["step"] for row in again] == [row["step"] for row in log] == list(range(1, 13))
    for one, other in zip(log, again, strict=True):
        assert {k: v for k, v in one.items() if k != "per_second"} == {
            k: v for k, v in other.items() if k != "per_second"
        }


def test_a_step_without_rows_adds_nothing(tmp_path):
    def few(step, rank, world):
        return {
            name: rows[: 0 if step == 3 else None] for name, rows in batches(step, 0, 1).items()
        }

    model = net()
    path = tmp_path / "checkpoint.safetensors"
    history = fit(model, few, plain_loss, STEPS, CONFIG, path, "test")
    assert history[-1]["step"] == STEPS
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(net(), tmp_path, killed_loss(3))
    assert list(tmp_path.iterdir()) == []
    assert used_seconds(tmp_path / "checkpoint.safetensors") == 0.0


def test_a_kill_during_a_checkpoint_keeps_the_one_before(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        run(net(), tmp_path / "a", killed_loss(6))
    (tmp_path / "a/checkpoint.safetensors.new").write_bytes(b"half a check")
    whole, resumed = net(), net(5)
    run(whole, tmp_path / "b")
    run(resumed, tmp_path / "a")
    assert same(whole, resumed)
    left = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert left == ["checkpoint.previous.safetensors", "checkpoint.safetensors"]


def flipped(path):
    """Change one bit in a file's last quarter, which has the tensors."""
    data = bytearray(path.read_bytes())
    data[-len(data) // 8] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a flipped bit": flipped,
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "no progress": lambda path: save_file({"a": torch.zeros(3)}, path),
    "another model's": lambda path: save_file(
        {"master.0": torch.zeros(3)}, path, {"progress": '{"step": 3}'}
    ),
    "missing": lambda path: path.unlink(),
}


def killed(folder, monkeypatch):
    """Return the newest checkpoint of a run that was killed at its seventh step."""
    folder.mkdir()
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        run(net(), folder, killed_loss(6))
    return folder / "checkpoint.safetensors"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(
    damage, tmp_path, monkeypatch, capsys
):
    newest = killed(tmp_path / "a", monkeypatch)
    DAMAGES[damage](newest)
    (tmp_path / "b").mkdir()
    whole, resumed = net(), net(5)
    run(whole, tmp_path / "b")
    run(resumed, tmp_path / "a")
    assert same(whole, resumed)
    printed = capsys.readouterr().out
    fault = "is missing" if damage == "missing" else "is damaged ("
    assert f"test: checkpoint.safetensors {fault}" in printed
    assert "resumes from checkpoint.previous.safetensors at step 6" in printed


def test_damaged_checkpoints_are_renamed_and_reported_once(tmp_path, monkeypatch):
    newest = killed(tmp_path / "a", monkeypatch)
    for path in (newest, previous(newest)):
        flipped(path)
    assert used_seconds(newest) > 0
    with pytest.raises(MlpMemError, match="safetensors is damaged .* Run the same command again"):
        run(net(), tmp_path / "a", killed_loss(0))
    left = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert left == ["checkpoint.previous.safetensors.damaged", "checkpoint.safetensors.damaged"]
    (tmp_path / "b").mkdir()
    whole, again = net(), net()
    run(whole, tmp_path / "b")
    run(again, tmp_path / "a")
    assert same(whole, again)
    discard(newest)
    assert not list((tmp_path / "a").iterdir())


def test_a_checkpoint_without_a_hash_is_loaded(tmp_path, monkeypatch):
    newest = killed(tmp_path / "a", monkeypatch)
    with safe_open(newest, "pt") as file:
        progress = file.metadata()["progress"]
    save_file(load_file(newest), newest, {"progress": progress})
    previous(newest).unlink()
    resumed, whole = net(3), net()
    (tmp_path / "b").mkdir()
    run(whole, tmp_path / "b")
    run(resumed, tmp_path / "a")
    assert same(whole, resumed)


def test_damaged_best_weights_are_renamed_with_their_checkpoints(tmp_path):
    best, checkpoint = tmp_path / "best.safetensors", tmp_path / "checkpoint.safetensors"
    losses = iter(range(1000))

    def trained(model):
        validate = lambda: {"val_nll": 1.0 / (1 + next(losses))}  # noqa: E731
        options = {"validate": validate, "best": best}
        fit(model, batches, plain_loss, STEPS, CONFIG, checkpoint, "test", **options)

    trained(net())
    flipped(best)
    with pytest.raises(MlpMemError, match="best.safetensors is damaged .* from the first step"):
        trained(net())
    assert not best.exists() and not checkpoint.exists()
    trained(net())
    assert best.exists()


def test_a_finished_run_trains_no_further_step_and_has_its_weights(tmp_path):
    first, second = net(), net(7)
    log = run(first, tmp_path)
    assert run(second, tmp_path, killed_loss(0)) == log
    assert same(first, second)
    assert used_seconds(tmp_path / "checkpoint.safetensors") > 0


def test_seconds_of_killed_runs_add_up(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    used = []
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run(net(), tmp_path, killed_loss(2))
        used.append(used_seconds(tmp_path / "checkpoint.safetensors"))
    assert 0 < used[0] < used[1] < used[2]


def test_the_log_has_the_figures_of_every_line_and_the_loss_falls(tmp_path, capsys):
    log = run(net(), tmp_path, steps=200)
    assert len(log) == loop.LOG_LINES and log[-1]["step"] == 200
    assert set(log[0]) == {"step", "loss", "ce", "norm", "lr", "per_second"}
    assert log[-1]["loss"] < log[0]["loss"] / 2
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("test ")]
    assert len(lines) == loop.LOG_LINES
    assert "MiB" in lines[0] and "200/200" in lines[-1]


@pytest.mark.parametrize("bad", [3, 4, 9])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_in_no_checkpoint(
    bad, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(loop, "LOG_LINES", 2)  # steps between lines are also checked

    def broken(model, batch):
        value, logs = plain_loss(model, batch)
        return (value * float("nan"), logs) if next(calls) == bad else (value, logs)

    calls = iter(range(100))
    with pytest.raises(MlpMemError, match=rf"step {bad + 1}: .*nan.*Lower the learning rate"):
        run(net(), tmp_path, broken)
    kept = load_file(tmp_path / "checkpoint.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())
    whole, resumed = net(), net(2)
    (tmp_path / "b").mkdir()
    run(whole, tmp_path / "b")
    run(resumed, tmp_path)
    assert same(whole, resumed)


WORKER = """
import json, os, signal, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {root!r} + "/tests/train", {root!r} + "/tests"]
import torch
torch.set_num_threads(1)
import test_loop as t
from train.fit import loop
folder, kill = Path(sys.argv[1]), int(sys.argv[2])
if kill:
    loop.CHECKPOINT_SECONDS = -1.0
def batches(step, rank, world):
    if kill and step == kill:
        os.kill(os.getpid(), signal.SIGKILL)
    return t.batches(step, rank, world)
model = t.net(kill)
loop.fit(model, batches, t.plain_loss, t.STEPS, t.CONFIG, folder / "checkpoint.safetensors", "w")
rank = os.environ.get("RANK", "0")
torch.distributed.is_initialized() and torch.distributed.destroy_process_group()
(folder / f"weights{{rank}}.json").write_text(json.dumps([p.tolist() for p in model.parameters()]))
"""


def worker(folder, kill=0, processes=1):
    """Return the exit status of the training script, run in new processes."""
    script = folder / "worker.py"
    script.write_text(WORKER.format(root=str(ROOT)), encoding="utf-8")
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [str(script), str(folder), str(kill)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, env=environment, timeout=300).returncode


def written(folder, rank=0):
    """Return the weights that a process of the script wrote."""
    values = json.loads((folder / f"weights{rank}.json").read_text(encoding="utf-8"))
    return [torch.tensor(v) for v in values]


@pytest.mark.slow
def test_a_process_killed_by_sigkill_resumes(tmp_path):
    assert worker(tmp_path, kill=5) == -signal.SIGKILL
    left = sorted(p.name for p in tmp_path.glob("*.safetensors*"))
    assert left == ["checkpoint.previous.safetensors", "checkpoint.safetensors"]
    assert worker(tmp_path) == 0
    (tmp_path / "b").mkdir()
    whole = net(5)  # the same start as the killed run
    run(whole, tmp_path / "b")
    for ours, theirs in zip(written(tmp_path), weights(whole), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(2, 1), (1, 2)])
def test_a_killed_run_resumes_with_another_number_of_processes(counts, tmp_path):
    before, after = counts
    assert worker(tmp_path, kill=5, processes=before) != 0
    assert worker(tmp_path, processes=after) == 0
    (tmp_path / "b").mkdir()
    whole = net(5)  # the same start as the killed run
    run(whole, tmp_path / "b")
    for ours, expected in zip(written(tmp_path), weights(whole), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_data_parallel_processes_equal_one(tmp_path):
    assert worker(tmp_path, processes=2) == 0
    (tmp_path / "b").mkdir()
    single = net(0)
    run(single, tmp_path / "b")
    for one, other, expected in zip(
        written(tmp_path), written(tmp_path, 1), weights(single), strict=True
    ):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, expected, rtol=1e-3, atol=1e-4)
