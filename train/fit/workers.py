"""A stage's model trained in one process or several data-parallel ones, resumed after a kill."""

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
from train.fit.checkpoint import files, used_seconds
from train.run.machine import FULL, peak_memory
from train.run.processes import ProcessGroup, close_group, launched, process_group, without_launcher

CHECKPOINT = "checkpoint.safetensors"
FAILED = "failed-*.json"  # what a worker of that rank says before it ends
PEAK = "peak-*.json"  # the bytes of memory that it took
ALONE = ProcessGroup(0, 1, torch.device("cpu"))


def run_workers(
    module: str, folder: Path, job: dict, processes: int, detached: bool = False
) -> dict:
    """Return counts of `module.train_worker(folder)`, which reads job.json and writes history.json.

    Under a launcher every process of it is a worker, unless this one has come `apart` from the
    others. Started plainly, a CPU gets `processes` of one thread each, which are faster than one of
    several, and a GPU gets one.
    """
    ours = launched() and not detached
    us = process_group() if ours else ALONE
    earlier = used_seconds(folder / CHECKPOINT)
    if us.is_main:
        for path in (*folder.glob(FAILED), *folder.glob(PEAK)):
            path.unlink()
        write_json(folder / "job.json", job)
    us.wait()
    gpu = torch.cuda.is_available()
    used = 0
    if ours or (not launched() and (processes == 1 or gpu)):
        import_module(module).train_worker(folder)
    else:
        used = _start(module, folder, 1 if gpu else processes)
    us.wait()
    last = read_json(folder / "history.json")[-1]
    return {
        "tokens": last["step"] * job["config"]["batch"],
        "loss": last["loss"],
        "earlier_seconds": earlier,
        "scratch": ["job.json", *(path.name for path in files(folder / CHECKPOINT))],
        "workers_memory": used,
    }


def run_worker(train_worker: Callable[[Path], None]) -> None:
    """Be a worker on the folder that the command line names; leave word of what was wrong."""
    folder = Path(sys.argv[1])
    die_with_parent()  # torchrun is killed where the run that started it is interrupted
    try:
        train_worker(folder)
    except MlpMemError as error:
        write_json(folder / FAILED.replace("*", str(process_group().rank)), str(error))
        sys.exit(1)
    except KeyboardInterrupt:  # who started it says that it was stopped
        sys.exit(130)
    write_json(folder / PEAK.replace("*", str(process_group().rank)), peak_memory())
    close_group()


def _start(module: str, folder: Path, processes: int) -> int:
    """Run the workers of one training on this machine; return the bytes of memory they took.

    MlpMemError where one fails, OSError where the disk is full.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "-m", module, str(folder)]
    environment = without_launcher(os.environ) | {"OMP_NUM_THREADS": "1"}
    first = die_with_parent if PRCTL else None
    if not subprocess.run(command, env=environment, preexec_fn=first).returncode:
        return sum(_taken(folder, PEAK))
    if said := _taken(folder, FAILED):
        raise MlpMemError(said[0])
    if shutil.disk_usage(folder).free < FULL:
        raise OSError(errno.ENOSPC, "a worker found the disk full")
    raise MlpMemError(f"{module}: a worker failed, see above; run again to go on")


def _taken(folder: Path, names: str) -> list:
    """Return the values of small files of such names, which go; half written ones have none."""
    found = []
    for path in sorted(folder.glob(names)):
        with suppress(ValueError):
            found.append(read_json(path))
        path.unlink()
    return found


def detach_from_launcher() -> None:
    """Make this process one of its own: without its launcher's words, ended with its parent."""
    for name in os.environ.keys() - without_launcher(os.environ).keys():
        del os.environ[name]
    die_with_parent()
