"""One optimizer step of a memory: tokens/s against this device's matmuls, and peak memory.

The floor of time is 6 FLOP per weight and token (2 forward, 4 backward) at the rate of a large
matmul of the same dtype, measured in turns with the step; the quotient is 1 / MFU. The floor of
memory is float32 master weights, gradients and two moments, and any bfloat16 weights.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from mlpmem.fast.devices import keep_memory
from mlpmem.model.memory import Memory, MemoryConfig
from train.bench.released import released_step
from train.bench.turns import BenchOptions, Figure, Turn
from train.config.tables import MemoryFitConfig, OptimizerConfig
from train.fit.loop import accumulate
from train.fit.optimizer import MasterOptimizer
from train.run.machine import alternate, matmul_work
from train.stages.memory import make_loss

ALPHA, SUPPORT = 0.5, 128


@dataclass(frozen=True)
class Shape:
    """A memory with GPT-2 blocks, and the size of a step."""

    name: str
    hidden: int
    blocks: int
    vocab: int
    tokens: int  # per step
    micro: int  # per pass
    repeats: int = 1  # steps per turn

    @property
    def weights(self) -> int:
        """Return the number of elements of all matrices."""
        return self.blocks * 8 * self.hidden**2 + self.vocab * self.hidden


SHAPES = {
    "cpu": (Shape("d384x12", 384, 12, 16384, 4096, 512),),
    "cuda": (
        Shape("gpt2-small", 768, 18, 50257, 32768, 16384, 5),
        Shape("gpt2-large", 1280, 54, 50257, 16384, 8192, 5),
    ),
}


def bench(options: BenchOptions, shapes: tuple[Shape, ...] | None = None) -> Iterator[Figure]:
    """Yield tokens/s and peak memory (MiB) of every shape and dtype."""
    for shape in shapes or SHAPES[torch.device(options.device).type]:
        yield from _figures(shape, options)


def _figures(shape: Shape, options: BenchOptions) -> Iterator[Figure]:
    """Yield the figures of one shape; all processes are alive together and take turns."""
    device = options.device
    kinds = ("bfloat16",) if device.startswith("cuda") else ("float32", "bfloat16")
    other, mode = ("eager", "off") if device.startswith("cuda") else ("compiled", "on")
    with ExitStack() as stack:

        def start(prepare: Callable, *arguments) -> Turn:
            return stack.enter_context(closing(Turn(prepare, *arguments)))

        turns = {kind: start(our_step, shape, kind, device) for kind in kinds}
        if options.compile:
            turns |= {f"{k} {other}": start(our_step, shape, k, device, mode) for k in kinds}
        matmuls = {f"matmul {kind}": start(_matmul, kind, device) for kind in kinds}
        if options.peer is not None:
            turns["peer"] = start(peer_step, shape, str(options.peer), device)
        seconds = alternate(turns | matmuls)
        memory = {name: turn.memory() for name, turn in turns.items()}
    steps = {name: shape.repeats * shape.tokens / seconds[name] for name in turns}
    for kind in kinds:
        rate = _matmul_flop(kind, device) / seconds[f"matmul {kind}"]
        name = f"step/{shape.name}/{kind}"
        floor = rate / (6 * shape.weights)
        yield Figure(f"{name}/tokens", steps[kind], "tokens/s", floor, peer=steps.get("peer"))
        if options.compile:
            yield Figure(f"{name}/{other}", steps[f"{kind} {other}"], "tokens/s", peer=steps[kind])
        held = shape.weights * (16 if kind == "float32" else 18) / 2**20
        peaks = {n: (peak / 2**20, (peak - before) / 2**20) for n, (peak, before) in memory.items()}
        peer = peaks.get("peer", (None, None))
        for i, metric in enumerate(("peak_memory", "peak_memory_above_imports")):
            yield Figure(f"{name}/{metric}", peaks[kind][i], "MiB", held, peer=peer[i])


def our_step(shape: Shape, kind: str, device: str, compile: str = "auto") -> Callable[[], None]:
    """Return the work of a turn: steps of train.fit, malloc tuned as by `python -m train`."""
    keep_memory()
    config = MemoryConfig(shape.hidden, shape.vocab, shape.blocks, 4 * shape.hidden, "gpt2")
    memory = Memory(config).to(device, getattr(torch, kind))
    optimizer = MasterOptimizer(memory, OptimizerConfig(lr=5e-4), 10**6)
    loss = make_loss(memory, MemoryFitConfig(alpha=ALPHA, compile=compile))
    batch = random_batch(shape, device)

    def step() -> None:
        accumulate(memory, batch, loss, optimizer, shape.micro)
        optimizer.step(0)

    return partial(_repeat, step, shape.repeats)


def peer_step(shape: Shape, peer: str, device: str) -> Callable[[], None]:
    """Return the released code's work of a turn, with default malloc on the same rows."""
    batch = random_batch(shape, device)
    sizes = shape.hidden, shape.blocks, shape.vocab
    return partial(_repeat, released_step(Path(peer), *sizes, batch, ALPHA), shape.repeats)


def random_batch(shape: Shape, device: str) -> dict[str, torch.Tensor]:
    """Return random keys, values and sparse targets, the same in every process."""
    torch.manual_seed(0)
    ids = torch.rand(shape.tokens, min(SUPPORT, shape.vocab)).argsort(1) * (shape.vocab // SUPPORT)
    batch = {
        "keys": torch.randn(shape.tokens, shape.hidden),
        "targets": torch.randint(shape.vocab, (shape.tokens,)),
        "token_ids": ids.int(),
        "probs": torch.rand(ids.shape).softmax(-1).half(),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _matmul(kind: str, device: str) -> Callable[[], object]:
    """Return the work of a turn: one large matmul."""
    return matmul_work(device, getattr(torch, kind))[0]


def _matmul_flop(kind: str, device: str) -> int:
    """Return the FLOP of the matmul."""
    return matmul_work(device, getattr(torch, kind))[1]


def _repeat(step: Callable[[], object], times: int) -> None:
    for _ in range(times):
        step()
