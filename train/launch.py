"""A stage's model trained in one process or several data-parallel ones, resumed after a kill."""

import ctypes
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import torch

from mlpmem.errors import MlpMemError
from train.files import read_json, write_json
from train.loop import used_seconds
from train.processes import launched, team

CHECKPOINT = "checkpoint.safetensors"
PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1


def run_workers(module: str, folder: Path, job: dict, processes: int) -> dict:
    """Return counts of `module.train_worker(folder)`, which reads job.json and writes history.json.

    Under a launcher every process of it is a worker. Started plainly, a CPU gets `processes` of one
    thread each, which are faster than one of several, and a GPU gets one.
    """
    us = team()
    earlier = used_seconds(folder / CHECKPOINT)
    if us.is_main:
        write_json(folder / "job.json", job)
    us.wait()
    if launched() or processes == 1 or torch.cuda.is_available():
        import_module(module).train_worker(folder)
    else:
        _start(module, folder, processes)
    us.wait()
    last = read_json(folder / "history.json")[-1]
    return {
        "tokens": last["step"] * job["config"]["batch"],
        "loss": last["loss"],
        "earlier_seconds": earlier,
        "scratch": ["job.json", CHECKPOINT],
    }


def _start(module: str, folder: Path, processes: int) -> None:
    """Run the workers of one training on this machine; MlpMemError where one fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "-m", module, str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    first = die_with_parent if PRCTL else None
    if subprocess.run(command, env=environment, preexec_fn=first).returncode:
        raise MlpMemError(f"{module}: a worker failed, see above; run again to go on")


def die_with_parent() -> None:
    """Have this process end when its parent is killed (on Linux).

    Otherwise it would train on, and write where the run that follows a kill writes too.
    """
    if PRCTL:
        PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)
