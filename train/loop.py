"""The one training loop: batches by step, data-parallel, checkpointed, resumed, logged."""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from mlpmem.errors import MlpMemError
from train.optimizer import MasterOptimizer, schedule
from train.recipe import Optimizer
from train.stage import peak_memory

CHECKPOINT_SECONDS = 60.0
LOG_LINES = 40  # aligned lines a run prints, whatever its length

Batch = dict[str, Tensor]
Logs = dict[str, Tensor]


def fit(
    model: nn.Module,
    batches: Callable[[int, int, int], Batch],
    loss: Callable[[nn.Module, Batch], tuple[Tensor, Logs]],
    steps: int,
    config: Optimizer,
    checkpoint: Path,
    label: str,
    accelerator: Accelerator | None = None,
) -> list[dict]:
    """Train `model` in place for `steps` optimizer steps; return the log, a dict a line.

    `batches(step, rank, world)` must depend on nothing else, so a resumed run sees what an
    undisturbed one sees. The checkpoint is written every minute and is not removed.
    """
    accelerator = accelerator or Accelerator(cpu=not torch.cuda.is_available())
    rank, world = accelerator.process_index, accelerator.num_processes
    model.to(accelerator.device)
    optimizer = MasterOptimizer(model, config, steps)
    start, history, used = load_checkpoint(checkpoint, optimizer)
    began = saved = time.perf_counter()
    tokens, marked = 0, time.perf_counter()
    every = max(1, steps // LOG_LINES)
    bar = tqdm(
        range(start, steps),
        label,
        steps,
        initial=start,
        unit="step",
        disable=rank > 0,
        mininterval=5.0,
    )
    for step in bar:
        batch = {k: v.to(accelerator.device) for k, v in batches(step, rank, world).items()}
        value, logs = loss(model, batch)
        value.backward()
        norm = optimizer.step(step, accelerator.reduce(optimizer.gradient(), "mean"))
        if not math.isfinite(norm):  # before any checkpoint could keep it
            raise _no_number(step, value, logs, norm)
        tokens += int(batch["targets"].numel()) * world
        if (step + 1) % every == 0 or step + 1 == steps:
            line = _line(step, value, logs, norm, config, steps)
            line["per_second"] = round(tokens / (time.perf_counter() - marked))
            tokens, marked = 0, time.perf_counter()
            history.append(line)
            _report(label, line, steps, rank)
        if time.perf_counter() - saved > CHECKPOINT_SECONDS and rank == 0:
            saved = time.perf_counter()
            save_checkpoint(checkpoint, optimizer, step + 1, history, used + saved - began)
    if rank == 0:
        total = used + time.perf_counter() - began
        save_checkpoint(checkpoint, optimizer, steps, history, total)
    return history


def _line(step: int, value: Tensor, logs: Logs, norm: float, config: Optimizer, steps: int) -> dict:
    """Return one log line's figures."""
    figures = _figures(value, logs)
    rate = config.lr * schedule(step, steps, config)
    return {"step": step + 1} | figures | {"norm": norm, "lr": rate}


def _figures(value: Tensor, logs: Logs) -> dict[str, float]:
    """Return the losses of a step as numbers."""
    return {k: float(v.detach()) for k, v in ({"loss": value} | logs).items()}


def _no_number(step: int, value: Tensor, logs: Logs, norm: float) -> MlpMemError:
    """Return what to say where loss or gradient overflowed."""
    figures = _figures(value, logs) | {"norm": norm}
    return MlpMemError(
        f"step {step + 1}: the loss is no number ({figures}); lower the learning rate or check "
        "the rows there. The last checkpoint is sound"
    )


def _report(label: str, line: dict, steps: int, rank: int) -> None:
    """Print a log line above the progress bar."""
    if rank > 0:
        return
    losses = " ".join(f"{k} {line[k]:7.4f}" for k in ("loss", "kl", "ce") if k in line)
    tqdm.write(
        f"{label} {line['step']:>6}/{steps} {losses} norm {line['norm']:6.2f} lr {line['lr']:.2e} "
        f"{line['per_second']:>7,}/s {peak_memory() / 2**20:6.0f} MiB"
    )


def save_checkpoint(
    path: Path, optimizer: MasterOptimizer, step: int, history: list[dict], seconds: float
) -> None:
    """Write masters, optimizer state and progress as one safetensors file, by rename."""
    beside = path.with_name(path.name + ".new")
    values = {"step": step, "history": history, "seconds": seconds}
    tensors = {k: v.contiguous() for k, v in optimizer.state().items()}
    save_file(tensors, beside, {"progress": json.dumps(values)})
    os.replace(beside, path)


def load_checkpoint(path: Path, optimizer: MasterOptimizer) -> tuple[int, list[dict], float]:
    """Return (next step, history, seconds used) and restore the optimizer, if there is a file."""
    if not path.is_file():
        return 0, [], 0.0
    with safe_open(path, framework="pt") as file:
        progress = json.loads(file.metadata()["progress"])
        optimizer.restore({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return progress["step"], progress["history"], progress["seconds"]


def used_seconds(path: Path) -> float:
    """Return the seconds that a checkpoint's run had used, 0 without one."""
    if not path.is_file():
        return 0.0
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["progress"])["seconds"]
