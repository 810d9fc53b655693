"""The process group: one process when started plainly, several under a launcher."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from train.files import write_json
from train.fit import workers
from train.run import processes
from train.run.pipeline import STAGES
from train.run.processes import LOCAL_RANKS, ProcessGroup, launched, process_group

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in LOCAL_RANKS:
        monkeypatch.delenv(name, raising=False)


def test_without_a_launcher_one_process_has_all_the_work():
    group = process_group()
    assert (group.rank, group.world, group.is_main) == (0, 1, True)
    assert group.share([3, 4, 5]) == [3, 4, 5]
    group.wait()


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_shares_are_disjoint_and_complete(world):
    shares = [
        ProcessGroup(rank, world, torch.device("cpu")).share(range(5)) for rank in range(world)
    ]
    assert sorted(i for share in shares for i in share) == list(range(5))


@pytest.mark.parametrize("name", LOCAL_RANKS)
def test_every_launcher_is_detected(name, monkeypatch):
    assert not launched()
    monkeypatch.setenv(name, "0")
    assert launched()


def test_training_under_a_launcher_starts_no_further_processes(tmp_path, monkeypatch):
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


def test_a_detached_process_starts_workers_without_the_launchers_variables(tmp_path, monkeypatch):
    variables = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    environments = []

    def run(command, env, preexec_fn):
        environments.append(env)
        write_json(tmp_path / "history.json", [{"step": 2, "loss": 1.5}])
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(workers, "process_group", pytest.fail)
    monkeypatch.setattr(workers.subprocess, "run", run)
    workers.run_workers("train.stages.memory", tmp_path, {"config": {"batch": 3}}, 1, detached=True)
    assert not environments[0].keys() & variables.keys() and "PATH" in environments[0]
    monkeypatch.setattr(workers, "die_with_parent", lambda: None)
    workers.detach_from_launcher()
    assert not launched() and not processes.os.environ.keys() & variables.keys()


@pytest.mark.slow
def test_a_launch_of_two_runs_every_stage(tmp_path):
    tiny = (ROOT / "train/recipes/tiny.toml").read_text("utf-8")
    controls = "[controls]\nmemories = [{ alpha = 0.0 }]\nquestions = 60\n"
    (tmp_path / "two.toml").write_text(f"{tiny}\n{controls}", "utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", "2", "-m", "train", "all", str(tmp_path / "two.toml")]
    result = subprocess.run([*command, "--runs", str(tmp_path)], cwd=ROOT, timeout=900)
    assert result.returncode == 0
    done = {path.parent.name for path in (tmp_path / "two").glob("*/manifest.json")}
    assert done == set(STAGES)
    assert (tmp_path / "two/controls/alpha_0/model.safetensors").is_file()


def test_closing_a_group_without_connections_does_nothing():
    processes.close_group()
    assert not torch.distributed.is_initialized()
