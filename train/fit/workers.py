"""A stage's model trained in one process or in several data-parallel workers."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import torch

from mlpmem.errors import MlpMemError
from mlpmem.loading.distil import PRCTL, die_with_parent
from train.files import read_json, write_json
from train.fit.checkpoint import checkpoint_files, used_seconds
from train.run.machine import FULL, peak_memory
from train.run.processes import ProcessGroup, close_group, launched, process_group, without_launcher

CHECKPOINT = "checkpoint.safetensors"
FAILED = "failed-*.json"  # a worker's error message, by rank
PEAK = "peak-*.json"  # a worker's peak bytes of memory, by rank
SINGLE = ProcessGroup(0, 1, torch.device("cpu"))


def run_workers(
    module: str, folder: Path, job: dict, processes: int, detached: bool = False
) -> dict:
    """Return counts of `module.train_worker(folder)`, which reads job.json and writes history.json.

    Under a launcher, each of its processes is a worker; a `detached` process trains by itself.
    Without a launcher, a CPU gets `processes` workers of one thread each, which is faster than one
    worker of several threads; a GPU gets one worker.
    """
    shared = launched() and not detached
    group = process_group() if shared else SINGLE
    earlier = used_seconds(folder / CHECKPOINT)
    if group.is_main:
        for path in (*folder.glob(FAILED), *folder.glob(PEAK)):
            path.unlink()
        write_json(folder / "job.json", job)
    group.wait()
    gpu = torch.cuda.is_available()
    peak = 0
    if shared or (not launched() and (processes == 1 or gpu)):
        import_module(module).train_worker(folder)
    else:
        peak = _start(module, folder, 1 if gpu else processes)
    group.wait()
    last = read_json(folder / "history.json")[-1]
    return {
        "tokens": last["step"] * job["config"]["batch"],
        "loss": last["loss"],
        "earlier_seconds": earlier,
        "scratch": ["job.json", *(path.name for path in checkpoint_files(folder / CHECKPOINT))],
        "workers_memory": peak,
    }


def run_worker(train_worker: Callable[[Path], None]) -> None:
    """Train as a worker in the folder that argv names; write an error message or the memory."""
    folder = Path(sys.argv[1])
    die_with_parent()  # an interrupted run kills torchrun, and so its workers
    try:
        train_worker(folder)
    except MlpMemError as error:
        write_json(folder / FAILED.replace("*", str(process_group().rank)), str(error))
        sys.exit(1)
    except KeyboardInterrupt:  # the parent prints that the run was stopped
        sys.exit(130)
    write_json(folder / PEAK.replace("*", str(process_group().rank)), peak_memory())
    close_group()


def _start(module: str, folder: Path, processes: int) -> int:
    """Run the workers of one model on this machine; return the sum of their peak bytes of memory.

    MlpMemError if one fails, OSError if the disk is full.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "-m", module, str(folder)]
    environment = without_launcher(os.environ) | {"OMP_NUM_THREADS": "1"}
    preexec = die_with_parent if PRCTL else None
    if not subprocess.run(command, env=environment, preexec_fn=preexec).returncode:
        return sum(_collect(folder, PEAK))
    if messages := _collect(folder, FAILED):
        raise MlpMemError(messages[0])
    if shutil.disk_usage(folder).free < FULL:
        raise OSError(errno.ENOSPC, "the disk is full, and a worker failed")
    raise MlpMemError(
        f"{module}: a worker failed; its error is above. Run the same command again to resume"
    )


def _collect(folder: Path, pattern: str) -> list:
    """Return the values of a pattern's JSON files, and delete them; partial files have none."""
    values = []
    for path in sorted(folder.glob(pattern)):
        with suppress(ValueError):
            values.append(read_json(path))
        path.unlink()
    return values


def detach_from_launcher() -> None:
    """Remove the launcher's variables from this process, which then ends with its parent."""
    for name in os.environ.keys() - without_launcher(os.environ).keys():
        del os.environ[name]
    die_with_parent()
