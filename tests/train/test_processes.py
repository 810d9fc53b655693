"""Who this process is: alone when started plainly, one of several under a launcher."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from train.files import write_json
from train.fit import workers
from train.run import processes
from train.run.pipeline import STAGES
from train.run.processes import MARKS, ProcessGroup, launched, process_group

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    for mark in MARKS:
        monkeypatch.delenv(mark, raising=False)


def test_started_plainly_there_is_one_process_with_all_the_work():
    us = process_group()
    assert (us.rank, us.world, us.is_main) == (0, 1, True)
    assert us.share([3, 4, 5]) == [3, 4, 5]
    us.wait()


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_shares_are_disjoint_and_make_up_all(world):
    shares = [
        ProcessGroup(rank, world, torch.device("cpu")).share(range(5)) for rank in range(world)
    ]
    assert sorted(i for share in shares for i in share) == list(range(5))


@pytest.mark.parametrize("mark", MARKS)
def test_any_launcher_is_noticed(mark, monkeypatch):
    assert not launched()
    monkeypatch.setenv(mark, "0")
    assert launched()


def test_a_training_under_a_launcher_starts_no_processes_of_its_own(tmp_path, monkeypatch):
    trained = []

    def train_worker(folder):
        trained.append(folder)
        write_json(folder / "history.json", [{"step": 2, "loss": 1.5}])

    module = type("Module", (), {"train_worker": staticmethod(train_worker)})
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(workers, "process_group", lambda: ProcessGroup(0, 1, torch.device("cpu")))
    monkeypatch.setattr(workers, "import_module", lambda name: module)
    monkeypatch.setattr(workers.subprocess, "run", pytest.fail)
    counts = workers.run_workers(
        "train.stages.memory", tmp_path, {"config": {"batch": 3}}, processes=2
    )
    assert trained == [tmp_path] and counts["tokens"] == 6


def test_who_came_apart_starts_workers_that_know_of_no_launcher(tmp_path, monkeypatch):
    told = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    seen = []

    def run(command, env, preexec_fn):
        seen.append(env)
        write_json(tmp_path / "history.json", [{"step": 2, "loss": 1.5}])
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(workers, "process_group", pytest.fail)
    monkeypatch.setattr(workers.subprocess, "run", run)
    workers.run_workers("train.stages.memory", tmp_path, {"config": {"batch": 3}}, 1, detached=True)
    assert not seen[0].keys() & told.keys() and "PATH" in seen[0]
    monkeypatch.setattr(workers, "die_with_parent", lambda: None)
    workers.detach_from_launcher()
    assert not launched() and not processes.os.environ.keys() & told.keys()


@pytest.mark.slow
def test_a_launch_of_two_runs_every_stage(tmp_path):
    tiny = (ROOT / "train/recipes/tiny.toml").read_text("utf-8")
    controls = "[controls]\nmemories = [{ alpha = 0.0 }]\nquestions = 60\n"
    (tmp_path / "two.toml").write_text(f"{tiny}\n{controls}", "utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", "2", "-m", "train", "all", str(tmp_path / "two.toml")]
    made = subprocess.run([*command, "--runs", str(tmp_path)], cwd=ROOT, timeout=900)
    assert made.returncode == 0
    done = {path.parent.name for path in (tmp_path / "two").glob("*/manifest.json")}
    assert done == set(STAGES)
    assert (tmp_path / "two/controls/alpha_0/model.safetensors").is_file()


def test_parting_without_connections_is_nothing():
    processes.close_group()
    assert not torch.distributed.is_initialized()
