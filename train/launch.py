"""A stage's model trained in one process or several data-parallel ones, resumed after a kill."""

import ctypes
import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import torch

from mlpmem.errors import MlpMemError
from train.loop import used_seconds
from train.stage import write_json

CHECKPOINT = "checkpoint.safetensors"
PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1


def run_workers(module: str, folder: Path, job: dict, processes: int) -> dict:
    """Return counts of `module.train_worker(folder)`, which reads job.json and writes history.json.

    On a CPU two processes of one thread are faster than one of two; a GPU gets one process here,
    several through `accelerate launch`.
    """
    earlier = used_seconds(folder / CHECKPOINT)
    write_json(folder / "job.json", job)
    if processes > 1 and not torch.cuda.is_available():
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes), "-m", module, str(folder)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        first = die_with_parent if PRCTL else None
        if subprocess.run(command, env=environment, preexec_fn=first).returncode:
            raise MlpMemError(f"{module}: a worker failed, see above; run again to go on")
    else:
        import_module(module).train_worker(folder)
    (folder / "job.json").unlink()
    (folder / CHECKPOINT).unlink()
    last = json.loads((folder / "history.json").read_text(encoding="utf-8"))[-1]
    tokens = last["step"] * job["config"]["batch"]
    return {"tokens": tokens, "loss": last["loss"], "earlier_seconds": earlier}


def die_with_parent() -> None:
    """Have this process end when its parent is killed (on Linux).

    Otherwise it would train on, and write where the run that follows a kill writes too.
    """
    if PRCTL:
        PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)
