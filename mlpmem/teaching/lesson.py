"""The loop: a copy of the memory learns new rows, and keeps to the old memory at old ones.

loss = CE(new rows) + keep * KL(old memory || copy) at old rows. The copy shares no weight with the
memory except a tied head, which is the decoder's and stays frozen. Steps are as many as fit into
the seconds, by the time of those before; if all fit, the same seed and one thread give the same
copy. The seconds count from the call, so reading the rows leaves fewer steps.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mlpmem.api import Model
from mlpmem.engine.call import Cancel
from mlpmem.errors import MlpMemError
from mlpmem.model.memory import Memory, MemoryConfig
from mlpmem.teaching.facts import asking_documents, is_chat
from mlpmem.teaching.rows import Rows, batches, new_rows, old_chats, old_keys
from mlpmem.teaching.wordings import Wordings

TRIALS = 3  # steps of each number of threads, before the faster one stays
TIMED = 2 * TRIALS  # steps after which those that fit are counted


@dataclass(frozen=True)
class Lesson:
    """How to teach; `python -m train.studies.training.sentences` measured the defaults."""

    steps: int = 240  # optimizer steps
    seconds: float = 60.0  # of reading new rows and of training, at most
    reading: float = 30.0  # more seconds, of reading old chats at most, in groups
    lr: float = 4e-4
    new: int = 48  # new rows of a step
    old: int = 320  # old rows of a step
    replay: int = 40_000  # different old rows
    keep: float = 4.0  # weight of the old rows
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise MlpMemError for values that no training can use."""
        counts = {"steps": self.steps, "new": self.new, "old": self.old}
        for name, value in counts.items():
            if type(value) is not int or value < 1:
                raise MlpMemError(f"lesson: {name} must be a whole number above 0; got {value!r}")
        for name in ("seconds", "reading", "lr"):
            value = getattr(self, name)
            if not value > 0:
                raise MlpMemError(f"lesson: {name} must be above 0; got {value!r}")
        if self.replay < 0 or self.keep < 0:
            raise MlpMemError("lesson: replay and keep must not be negative; 0 leaves out old rows")


CHATS = {"steps": 80, "lr": 3e-4, "new": 24, "old": 96}  # rows of a step: it has many words


@dataclass(frozen=True)
class Progress:
    """The state after a step; the last one has the taught memory."""

    step: int  # 0 while old chats are read
    steps: int  # in all, as known now
    loss: float  # nats per new token
    drift: float  # nats by which the copy differs from the old memory at old rows
    left: float  # seconds
    memory: Memory | None = None


def teach(
    model: Model,
    sentences: Sequence[str],
    lesson: Lesson | None = None,
    cancel: Cancel | None = None,
) -> Iterator[Progress]:
    """Yield the progress of teaching sentences to a copy of a model's memory.

    The model and its memory do not change. MlpMemError if cancel.is_set() before the end.
    """
    lesson, begin = lesson or lesson_for(model), time.perf_counter()
    if model.memory is None:
        raise MlpMemError("this model has no memory to teach; load one with memory=...")
    texts = [sentence.strip() for sentence in sentences if sentence.strip()]
    if not texts:
        raise MlpMemError("there is no sentence to teach; write one, such as: Ada plays the oboe.")
    known = Wordings(model)
    rows = []
    for text in texts:
        _check(cancel)
        rows.append(new_rows(model, known.of(text)))
    old, end = rows[0].keys[:0], begin + lesson.seconds
    if lesson.keep:
        old = yield from _replayed(model, lesson, cancel)
        end += lesson.reading * reads_chats(model)
    end = min(end, time.perf_counter() + lesson.seconds)
    yield from _train(model.memory, rows, old, lesson, end, cancel)


def lesson_for(
    model: Model, seconds: float = Lesson.seconds, reading: float = Lesson.reading
) -> Lesson:
    """Return the lesson that suits a model, within seconds of training and of reading chats."""
    return Lesson(seconds=seconds, reading=reading, **CHATS if reads_chats(model) else {})


def reads_chats(model: Model) -> bool:
    """Return whether old rows are read as chats, which takes some of a lesson's seconds."""
    return is_chat(model) and asking_documents(model) is not None


def _replayed(
    model: Model, lesson: Lesson, cancel: Cancel | None
) -> Generator[Progress, None, Tensor]:
    """Return old keys (R, K); of chats as many as are read in time, with progress meanwhile."""
    stopped = None if cancel is None else cancel.is_set
    if not reads_chats(model):
        return old_keys(model, lesson.replay, lesson.seed, stopped)
    begin, parts = time.perf_counter(), []
    for keys in old_chats(model, lesson.seed, stopped):
        parts.append(keys)
        left = lesson.reading - (time.perf_counter() - begin)
        if left <= 0 or sum(map(len, parts)) >= lesson.replay:
            break
        yield Progress(0, lesson.steps, 0.0, 0.0, left + lesson.seconds)
    return torch.cat(parts)[: lesson.replay]


def _check(cancel: Cancel | None) -> None:
    """Raise MlpMemError if a teaching was cancelled."""
    if cancel is not None and cancel.is_set():
        raise MlpMemError("the teaching was cancelled; nothing has changed")


@torch.inference_mode(False)
@torch.enable_grad()
def _train(
    memory: Memory,
    new: Sequence[Rows],
    old: Tensor,
    lesson: Lesson,
    end: float,
    cancel: Cancel | None,
) -> Iterator[Progress]:
    """Yield the progress of training a copy; every sentence has as much weight as the others.

    A step begins only if one as slow as the slowest of the latest would be done by the time `end`.
    """
    copy = trainable(memory)
    weights = [p for p in copy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lesson.lr, betas=(0.9, 0.95), weight_decay=0.0)
    rng = torch.Generator().manual_seed(lesson.seed)
    keys, values = torch.cat([r.keys for r in new]), torch.cat([r.values for r in new])
    share = torch.cat([torch.full((len(r.values),), 1 / len(r.values)) for r in new])
    old_batches = batches(len(old), lesson.old, rng) if len(old) else None
    steps, step, pace = lesson.steps, 0, Pace(torch.get_num_threads())
    while step < steps:
        _check(cancel)
        _set_rate(optimizer, lesson.lr, step, steps)
        at = torch.multinomial(share, lesson.new, replacement=True, generator=rng)
        kept = old[next(old_batches)] if old_batches is not None else old
        with pace.timed(step):
            loss, drift = _step(copy, memory, (keys[at], values[at]), kept, lesson.keep, optimizer)
        step += 1
        left = end - time.perf_counter()
        if left < pace.slowest:
            steps = step
        elif step >= TIMED:
            steps = step + min(lesson.steps - step, max(1, int(left / pace.seconds)))
        done = finished(copy, memory) if step == steps else None
        yield Progress(step, steps, loss, drift, pace.seconds * (steps - step), done)


class Pace:
    """The seconds of a step, with all threads or with one, whichever is faster on this machine.

    On a busy one, threads that wait for each other make a step several times slower.
    """

    def __init__(self, total: int) -> None:
        """Try `total` threads and one."""
        self._taken: dict[int, list[float]] = {count: [] for count in dict.fromkeys((total, 1))}

    @property
    def threads(self) -> int:
        """Return the number whose latest steps were the fastest."""
        return min(self._taken, key=lambda count: self._of(count))

    @property
    def seconds(self) -> float:
        """Return the seconds of a step."""
        return self._of(self.threads)

    @property
    def slowest(self) -> float:
        """Return the most seconds that a latest step of that number took."""
        return max(self._taken[self.threads][-2 * TRIALS :], default=0.0)

    def _of(self, count: int) -> float:
        """Return the median seconds of a number's latest steps."""
        return float(np.median(self._taken[count][-2 * TRIALS :] or [0.0]))

    @contextmanager
    def timed(self, step: int) -> Iterator[None]:
        """Time one step with the threads to try, or with the faster number after the trials."""
        counts, before = [*self._taken], torch.get_num_threads()
        trial = step < TRIALS * len(counts)
        count = counts[step % len(counts)] if trial else self.threads
        torch.set_num_threads(count)
        begin = time.perf_counter()
        try:
            yield
        finally:
            torch.set_num_threads(before)
            self._taken[count].append(time.perf_counter() - begin)


def trainable(memory: Memory) -> Memory:
    """Return a copy of a memory in float32 with plain layers; all weights but a tied head learn."""
    copy = Memory(MemoryConfig(**vars(memory.config)))
    state = {name: weight.detach().float().clone() for name, weight in memory.state_dict().items()}
    tied = memory.config.tied_head
    if tied:
        head = state.pop("lm_head.weight")
        copy.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    copy.load_state_dict(state, strict=not tied)
    return copy.train()


def finished(copy: Memory, memory: Memory) -> Memory:
    """Return a trained copy in the memory's dtype, which is that of the decoder's head too."""
    return copy.requires_grad_(False).eval().to(memory.dtype)


def _set_rate(optimizer: torch.optim.Optimizer, lr: float, step: int, steps: int) -> None:
    """Warm up over ten steps, then fall to a tenth in a line."""
    for group in optimizer.param_groups:
        group["lr"] = lr * min(1.0, (step + 1) / 10) * (1 - 0.9 * step / steps)


def _step(
    copy: Memory,
    memory: Memory,
    new: tuple[Tensor, Tensor],
    old: Tensor,
    keep: float,
    optimizer: torch.optim.Optimizer,
) -> tuple[float, float]:
    """Take one step; return the mean CE at new rows and KL at old rows, in nats."""
    keys, values = new
    logits = copy(torch.cat([keys, old]))
    ce = F.cross_entropy(logits[: len(keys)], values)
    kl = ce.new_zeros(())
    if len(old):
        with torch.no_grad():
            taught = memory(old.to(memory.dtype)).float().log_softmax(-1)
        mine = logits[len(keys) :].log_softmax(-1)
        kl = F.kl_div(mine, taught, log_target=True, reduction="batchmean")
    optimizer.zero_grad()
    (ce + keep * kl).backward()
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    return float(ce.detach()), float(kl.detach())
