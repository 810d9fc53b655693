"""The training loop of decoder and memory: micro-batches, data parallelism, checkpoints, log lines.

The loss of every step is checked, one step late, so that the device already has its next step. A
run stops at a loss that is not finite, or that stays far above the recent median.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from mlpmem.errors import MlpMemError
from train.config.tables import OptimizerConfig
from train.fit.checkpoint import (
    READ_ERRORS,
    load_checkpoint,
    mark_damaged,
    previous,
    read_tensors,
    save_checkpoint,
    save_tensors,
)
from train.fit.optimizer import MasterOptimizer, schedule
from train.run.machine import peak_memory

WINDOW = 64  # recent losses, whose median is the usual loss
SPIKE = 2.0  # a spike is a loss above SPIKE * usual + 1 nat
PATIENCE = 8  # consecutive spikes that stop a run


class LossMonitor:
    """The figures of the last step that was read, and the losses before it."""

    def __init__(self, usual: list[float]) -> None:
        """Begin with the recent losses of a killed run, or none."""
        self.figures: dict[str, float] = {}
        self.rows = 0.0  # since the last log line
        self.spikes = 0  # consecutive ones
        self.usual = deque(usual, WINDOW)  # recent losses without spikes
        self._unread: tuple[int, Tensor, list[str]] | None = None

    def add(self, step: int, counts: Tensor, names: list[str]) -> None:
        """Read the step before, and keep this step's counts (rows, sums by names, ..., norm)."""
        self.read()
        self._unread = step, counts, names

    def read(self) -> dict[str, float]:
        """Return means over rows by name, and the norm, of the last step added.

        MlpMemError if one is not finite, or at the last of PATIENCE consecutive spikes.
        """
        if self._unread is None:
            return self.figures
        (step, counts, names), self._unread = self._unread, None
        rows, *sums, norm = counts.tolist()
        self.rows += rows
        means = [s / max(rows, 1.0) for s in sums]
        self.figures = dict(zip(names, means, strict=False)) | {"norm": norm}
        if not all(map(math.isfinite, self.figures.values())):
            raise MlpMemError(
                f"step {step + 1}: the loss must be finite; got {self.figures}. Lower the learning "
                "rate, or check the rows of this step. The last checkpoint is from before it"
            )
        self._check_spike(step, self.figures["loss"])
        return self.figures

    def _check_spike(self, step: int, loss: float) -> None:
        """Raise MlpMemError at the last of PATIENCE consecutive spikes."""
        usual = median(self.usual) if len(self.usual) == WINDOW else math.inf
        limit = SPIKE * usual + 1.0
        self.spikes = self.spikes + 1 if loss > limit else 0
        if not self.spikes:
            self.usual.append(loss)
        if self.spikes == PATIENCE:
            raise MlpMemError(
                f"step {step + 1}: the loss is {loss:.3f}, and has been above {limit:.3f} for "
                f"{PATIENCE} steps; its recent median is {usual:.3f}. Lower the learning rate, or "
                f"check the rows from step {step + 2 - PATIENCE} on. The last checkpoint is from "
                "before that step"
            )


CHECKPOINT_SECONDS = 60.0
SLOW = 3.0  # seconds that a checkpoint may take and still be written every CHECKPOINT_SECONDS
SLOW_INTERVAL = 20  # times a slow checkpoint's seconds, until the next one
LOG_LINES = 40  # lines that a run prints, whatever its length


Batch = dict[str, Tensor]
Logs = dict[str, Tensor]


def fit(
    model: nn.Module,
    batches: Callable[[int, int, int], Batch],
    loss: Callable[[nn.Module, Batch], tuple[Tensor, Logs]],
    steps: int,
    config: OptimizerConfig,
    checkpoint: Path,
    label: str,
    accelerator: Accelerator | None = None,
    *,
    seed: int = 0,
    micro: int = 0,
    validate: Callable[[], dict[str, float]] | None = None,
    best: Path | None = None,
) -> list[dict]:
    """Train `model` in place for `steps` optimizer steps; return the log, one dict per line.

    batches(step, rank, world): returns a process's share of a step, and depends on nothing else.
        torch's generator is seeded at every step, so a resumed run equals an uninterrupted one.
    loss: returns sums over the rows whose batch["targets"] are not negative.
    micro: rows per forward and backward pass; 0: all.
    validate: returns further figures for a log line.
    best: a file for the weights with the lowest "val_nll"; in the end the model has them.

    In the end the model is in float32. The checkpoint is written every CHECKPOINT_SECONDS, less
    often if that is slow, and is not deleted.
    """
    accelerator = accelerator or Accelerator(cpu=not torch.cuda.is_available())
    rank, world = accelerator.process_index, accelerator.num_processes
    model.to(accelerator.device)
    optimizer = MasterOptimizer(model, config, steps)
    checkpointer = _Checkpointer(checkpoint, optimizer, label)
    progress, monitor = checkpointer.progress, checkpointer.monitor
    log = _Log(label, steps, config, accelerator, validate if rank == 0 else None)
    for step, batch in _prefetched(batches, range(progress.step, steps), rank, world, label):
        torch.manual_seed(step_seed(seed, step, rank))
        names = accumulate(model, batch, loss, optimizer, micro or max(1, len(batch["targets"])))
        monitor.add(step, optimizer.step(step), names)
        progress.step = step + 1
        if log.is_due(progress.step):
            line = log.line(progress.step, monitor)
            if best is not None and rank == 0 and _is_best(line, progress.history):
                save_tensors(best, optimizer.weights())
            progress.history.append(line)
        if rank == 0:
            checkpointer.save_if_due(last=progress.step == steps)
    optimizer.finish()
    if best is not None and best.is_file():
        try:
            weights, _ = read_tensors(best)
        except READ_ERRORS as error:
            fault = f"{best.name} is damaged ({str(error)[:100]})"
            raise mark_damaged([best, checkpoint, previous(checkpoint)], label, fault) from error
        model.load_state_dict(weights, strict=False)
    return progress.history


class _Log:
    """A run's log: LOG_LINES aligned lines, whose figures also go to the trackers."""

    def __init__(
        self,
        label: str,
        steps: int,
        config: OptimizerConfig,
        accelerator: Accelerator,
        validate: Callable[[], dict[str, float]] | None,
    ) -> None:
        """Start the clock of the first line's rate."""
        self.label, self.steps, self.config = label, steps, config
        self.accelerator, self.validate = accelerator, validate
        self.every, self.started = max(1, steps // LOG_LINES), time.perf_counter()

    def is_due(self, step: int) -> bool:
        """Return whether a line follows this many steps."""
        return step % self.every == 0 or step == self.steps

    def line(self, step: int, monitor: LossMonitor) -> dict:
        """Return the figures after this many steps; print them and send them to the trackers."""
        line = {"step": step} | monitor.read()
        line["lr"] = self.config.lr * schedule(step - 1, self.steps, self.config)
        line["per_second"] = round(monitor.rows / (time.perf_counter() - self.started))
        line |= self.validate() if self.validate is not None else {}
        self.accelerator.log({k: v for k, v in line.items() if k != "step"}, step)
        _report(self.label, line, self.steps, self.accelerator.process_index)
        monitor.rows, self.started = 0.0, time.perf_counter()
        return line


class _Checkpointer:
    """A run's progress, written every CHECKPOINT_SECONDS, or less often if that is slow."""

    def __init__(self, path: Path, optimizer: MasterOptimizer, label: str) -> None:
        """Restore the checkpoint, if there is one."""
        self.path, self.optimizer = path, optimizer
        self.progress = load_checkpoint(path, optimizer, label)
        self.monitor = LossMonitor(self.progress.usual)
        self.saved, self.every = time.perf_counter(), CHECKPOINT_SECONDS
        self.began = self.saved - self.progress.seconds

    def save_if_due(self, last: bool) -> None:
        """Write the checkpoint if it is time, or after the last step; never during a spike."""
        if not last and time.perf_counter() - self.saved <= self.every:
            return
        self.monitor.read()
        self.saved = time.perf_counter()
        self.progress.usual = list(self.monitor.usual)
        self.progress.seconds = self.saved - self.began
        if not self.monitor.spikes:
            save_checkpoint(self.path, self.optimizer, self.progress)
            took = time.perf_counter() - self.saved
            self.every = SLOW_INTERVAL * took if took > SLOW else CHECKPOINT_SECONDS


def step_seed(*parts: int) -> int:
    """Return a seed computed from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _prefetched(
    batches: Callable[[int, int, int], Batch], steps: range, rank: int, world: int, label: str
) -> Iterator[tuple[int, Batch]]:
    """Yield (step, batch) of every step; a thread prepares the next batch during the step."""
    bar = tqdm(
        steps,
        label,
        steps.stop,
        initial=steps.start,
        unit="step",
        disable=rank > 0,
        mininterval=5.0,
    )
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(batches, steps.start, rank, world) if steps else None
        for step in bar:
            batch = future.result()
            if step + 1 < steps.stop:
                future = pool.submit(batches, step + 1, rank, world)
            yield step, batch


def accumulate(
    model: nn.Module, batch: Batch, loss: Callable, optimizer: MasterOptimizer, micro: int
) -> list[str]:
    """Add a batch's gradients and counts to the optimizer's; return the names of the sums.

    micro: rows per forward and backward pass.
    """
    device = optimizer.counts.device
    names = ["loss"]
    for start in range(0, len(batch["targets"]), micro):
        part = {k: v[start : start + micro].to(device) for k, v in batch.items()}
        value, logs = loss(model, part)
        value.backward()
        optimizer.count((part["targets"] >= 0).sum(), [value, *logs.values()])
        names = ["loss", *logs]
    return names


def _is_best(line: dict, history: list[dict]) -> bool:
    """Return whether a log line's val_nll is lower than that of all lines before."""
    return all(line["val_nll"] < earlier["val_nll"] for earlier in history)


def _report(label: str, line: dict, steps: int, rank: int) -> None:
    """Print a log line above the progress bar, in the first process."""
    if rank > 0:
        return
    losses = [f"{k} {line[k]:7.4f}" for k in ("loss", "kl", "ce") if k in line]
    losses += [f"{k} {line[k]:8.5g}" for k in ("val_ppl", "mix_ppl") if k in line]
    tqdm.write(
        f"{label} {line['step']:>6}/{steps} {' '.join(losses)} norm {line['norm']:6.2f} "
        f"lr {line['lr']:.2e} {line['per_second']:>9,} tok/s {_memory_used() / 2**20:6.0f} MiB"
    )


def _memory_used() -> int:
    """Return the peak bytes of memory: of the GPU, or of this process without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_memory()
