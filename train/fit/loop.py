"""The one training loop: micro-batches, data-parallel, checkpointed, resumed, validated, logged.

Looks at every step's figures, one step late: a device is given its next work before it is asked.

Stops a run whose loss is no number, or far above what it was, and says where.
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
    BROKEN,
    load_checkpoint,
    previous,
    put_aside,
    read_tensors,
    save_checkpoint,
    save_tensors,
)
from train.fit.optimizer import MasterOptimizer, schedule
from train.run.machine import peak_memory

WINDOW = 64  # losses whose median is the usual loss
SPIKE, PATIENCE = 2.0, 8  # so many usual losses, plus 1 nat, for so many steps running


class Watch:
    """The figures of the last step that was looked at, and the losses before it."""

    def __init__(self, usual: list[float]) -> None:
        """Begin with the losses that an earlier run kept in `usual`."""
        self.figures: dict[str, float] = {}
        self.rows = 0.0  # since it was last set to 0
        self.high = 0  # steps running whose loss was far too large
        self.usual = deque(usual, WINDOW)
        self._waiting: tuple[int, Tensor, list[str]] | None = None

    def add(self, step: int, counts: Tensor, names: list[str]) -> None:
        """Take a step's counts (rows, sums by names, ..., norm) and look at the step before.

        Raises MlpMemError as `look` does.
        """
        self.look()
        self._waiting = step, counts, names

    def look(self) -> dict[str, float]:
        """Return means over rows by name, and the norm, of the last step taken.

        MlpMemError if they are no numbers, or the loss was far too large for PATIENCE steps.
        """
        if self._waiting is None:
            return self.figures
        (step, counts, names), self._waiting = self._waiting, None
        rows, *sums, norm = counts.tolist()
        self.rows += rows
        means = [s / max(rows, 1.0) for s in sums]
        self.figures = dict(zip(names, means, strict=False)) | {"norm": norm}
        if not all(map(math.isfinite, self.figures.values())):
            raise MlpMemError(
                f"step {step + 1}: the loss is no number ({self.figures}); lower the learning rate "
                "or check the rows there. The last checkpoint is sound"
            )
        self._check_spike(step, self.figures["loss"])
        return self.figures

    def _check_spike(self, step: int, loss: float) -> None:
        """Raise MlpMemError at the last of PATIENCE losses that are far above the median."""
        usual = median(self.usual) if len(self.usual) == WINDOW else math.inf
        self.high = self.high + 1 if loss > SPIKE * usual + 1.0 else 0
        if not self.high:
            self.usual.append(loss)
        if self.high == PATIENCE:
            raise MlpMemError(
                f"step {step + 1}: the loss is {loss:.3f}, for {PATIENCE} steps now far above the "
                f"{usual:.3f} it was; lower the learning rate, or check the rows from step "
                f"{step + 2 - PATIENCE} on. The last checkpoint is from before that"
            )


CHECKPOINT_SECONDS = 60.0
SLOW, APART = 3.0, 20  # seconds a checkpoint may take; slower ones come so many times that apart
LOG_LINES = 40  # aligned lines a run prints, whatever its length


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

    `batches(step, rank, world)` gives a process's share of a step and must depend on nothing else.
    torch's own generator (dropout) is seeded at every step, so the step number is all the state of
    data and random numbers, and a resumed run equals an undisturbed one. `loss` returns sums over
    the rows whose batch["targets"] are not negative, `micro` rows at a time if that is not 0.

    The model ends up in float32. At every log line `validate()` gives more figures; with `best`, a
    file, the weights whose "val_nll" was least are kept there, and are the model's in the end. The
    checkpoint is written every minute, or more rarely where that takes long, and is not removed.
    """
    accelerator = accelerator or Accelerator(cpu=not torch.cuda.is_available())
    rank, world = accelerator.process_index, accelerator.num_processes
    model.to(accelerator.device)
    optimizer = MasterOptimizer(model, config, steps)
    keeper = _Keeper(checkpoint, optimizer, label)
    progress, watch = keeper.progress, keeper.watch
    log = _Log(label, steps, config, accelerator, validate if rank == 0 else None)
    for step, batch in _ahead(batches, range(progress.step, steps), rank, world, label):
        torch.manual_seed(step_seed(seed, step, rank))
        names = accumulate(model, batch, loss, optimizer, micro or max(1, len(batch["targets"])))
        watch.add(step, optimizer.step(step), names)
        progress.step = step + 1
        if log.is_due(progress.step):
            line = log.line(progress.step, watch)
            if best is not None and rank == 0 and _is_best(line, progress.history):
                save_tensors(best, optimizer.weights())
            progress.history.append(line)
        if rank == 0:
            keeper.keep(last=progress.step == steps)
    optimizer.finish()
    if best is not None and best.is_file():
        try:
            weights, _ = read_tensors(best)
        except BROKEN as error:
            why = f"{best.name} is damaged ({str(error)[:100]})"
            raise put_aside([best, checkpoint, previous(checkpoint)], label, why) from error
        model.load_state_dict(weights, strict=False)
    return progress.history


class _Log:
    """The aligned lines of a run, LOG_LINES of them; trackers are told the same."""

    def __init__(
        self,
        label: str,
        steps: int,
        config: OptimizerConfig,
        accelerator: Accelerator,
        validate: Callable[[], dict[str, float]] | None,
    ) -> None:
        """Begin to measure the rate."""
        self.label, self.steps, self.config = label, steps, config
        self.accelerator, self.validate = accelerator, validate
        self.every, self.marked = max(1, steps // LOG_LINES), time.perf_counter()

    def is_due(self, step: int) -> bool:
        """Return whether there is a line after so many steps."""
        return step % self.every == 0 or step == self.steps

    def line(self, step: int, watch: Watch) -> dict:
        """Return the figures after so many steps, printed and told to the trackers."""
        line = {"step": step} | watch.look()
        line["lr"] = self.config.lr * schedule(step - 1, self.steps, self.config)
        line["per_second"] = round(watch.rows / (time.perf_counter() - self.marked))
        line |= self.validate() if self.validate is not None else {}
        self.accelerator.log({k: v for k, v in line.items() if k != "step"}, step)
        _report(self.label, line, self.steps, self.accelerator.process_index)
        watch.rows, self.marked = 0.0, time.perf_counter()
        return line


class _Keeper:
    """A run's progress and its checkpoint, every CHECKPOINT_SECONDS, more rarely where slow."""

    def __init__(self, path: Path, optimizer: MasterOptimizer, label: str) -> None:
        """Go on where the checkpoint stands, or begin."""
        self.path, self.optimizer = path, optimizer
        self.progress = load_checkpoint(path, optimizer, label)
        self.watch = Watch(self.progress.usual)
        self.saved, self.every = time.perf_counter(), CHECKPOINT_SECONDS
        self.began = self.saved - self.progress.seconds

    def keep(self, last: bool) -> None:
        """Write the checkpoint where it is time, or this was the last step."""
        if not last and time.perf_counter() - self.saved <= self.every:
            return
        self.watch.look()
        self.saved = time.perf_counter()
        self.progress.usual = list(self.watch.usual)
        self.progress.seconds = self.saved - self.began
        if not self.watch.high:  # a spike must not replace what came before it
            save_checkpoint(self.path, self.optimizer, self.progress)
            took = time.perf_counter() - self.saved
            self.every = APART * took if took > SLOW else CHECKPOINT_SECONDS


def step_seed(*parts: int) -> int:
    """Return a seed that follows from several numbers and from nothing else."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _ahead(
    batches: Callable[[int, int, int], Batch], steps: range, rank: int, world: int, label: str
) -> Iterator[tuple[int, Batch]]:
    """Yield (step, batch) of every step; the next batch is made while this one is trained on."""
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
        waiting = pool.submit(batches, steps.start, rank, world) if steps else None
        for step in bar:
            batch = waiting.result()
            if step + 1 < steps.stop:
                waiting = pool.submit(batches, step + 1, rank, world)
            yield step, batch


def accumulate(
    model: nn.Module, batch: Batch, loss: Callable, optimizer: MasterOptimizer, micro: int
) -> list[str]:
    """Add the gradients and counts of a batch to the optimizer's, `micro` rows at a time.

    Returns the names of the sums.
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
    """Return whether a log line's validation is better than that of all before."""
    return all(line["val_nll"] < earlier["val_nll"] for earlier in history)


def _report(label: str, line: dict, steps: int, rank: int) -> None:
    """Print a log line above the progress bar."""
    if rank > 0:
        return
    losses = [f"{k} {line[k]:7.4f}" for k in ("loss", "kl", "ce") if k in line]
    losses += [f"{k} {line[k]:8.5g}" for k in ("val_ppl", "mix_ppl") if k in line]
    tqdm.write(
        f"{label} {line['step']:>6}/{steps} {' '.join(losses)} norm {line['norm']:6.2f} "
        f"lr {line['lr']:.2e} {line['per_second']:>9,} tok/s {_memory_used() / 2**20:6.0f} MiB"
    )


def _memory_used() -> int:
    """Return the most memory used so far, bytes: of the GPU where there is one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_memory()
