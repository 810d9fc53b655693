"""Part "recipe" of `python -m train.bench gpu`: the memory of smollm2 at four times the data.

It takes the steps of the recipe's stage `memory` (its shape, optimizer, batch, noise and kept rows)
on as many rows as four times its chats have, until its time is up. The rows are made up, and keys
and context vectors lie on the device. The whole recipe cannot be bounded in seconds: its first
stage does not resume, and it needs a file and a text that a bare machine lacks. So reading rows
from a datastore is not measured here. Letters: N rows, K numbers of a key, D, V, S as elsewhere.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mlpmem.bench.figures import Figure
from mlpmem.model.memory import Memory, MemoryConfig
from train.bench.gpu.device import Job
from train.config.load import load_recipe
from train.config.tables import MemoryFitConfig
from train.fit.kept_rows import SUPPORT
from train.fit.loop import accumulate
from train.fit.optimizer import MasterOptimizer
from train.run.machine import synchronise
from train.stages.memory import make_loss

HEAD = 0.1  # standard deviation of the decoder's head, which is tied
FACT_ROWS = 50  # of one fact: about 40 chats of a few answer tokens
SPREAD = 0.3  # standard deviation of a fact's keys around its own


@dataclass(frozen=True)
class RecipeSizes:
    """What is trained: a recipe's [memory] on N made-up rows of D and V."""

    recipe: str
    rows: int  # N
    hidden: int  # D
    vocab: int  # V
    batch: int  # rows per step, at most; the recipe's where it is larger
    dtypes: tuple[str, ...]  # that share the time; the recipe's own first


class Rows:
    """Rows on the device: keys (N, K) float16 around the key of their fact, and its token (N,)."""

    def __init__(self, sizes: RecipeSizes, config: MemoryFitConfig, device: str) -> None:
        """Draw the rows, the same at every call."""
        self.rng = torch.Generator(device).manual_seed(0)
        self.options = {"generator": self.rng, "device": device}
        width, facts = sizes.hidden * (1 + len(config.context)), max(1, sizes.rows // FACT_ROWS)
        centres = torch.randn(facts, width, **self.options)
        tokens = torch.randint(sizes.vocab, (facts,), **self.options)
        of = torch.randint(facts, (sizes.rows,), **self.options)
        self.values = tokens[of]
        self.keys = torch.empty(sizes.rows, width, dtype=torch.float16, device=device)
        for start in range(0, sizes.rows, 65536):
            at = of[start : start + 65536]
            noise = torch.randn(len(at), width, **self.options)
            self.keys[start : start + 65536] = centres[at] + SPREAD * noise
        self.config, self.vocab = config, sizes.vocab
        self.support = min(SUPPORT, sizes.vocab)

    def batch(self, count: int, noise: float = 0.0) -> dict[str, Tensor]:
        """Return a batch of `count` random rows and the recipe's share of kept rows.

        Kept rows have alpha 1 and random distributions over S tokens; noise is added to all keys.
        """
        kept = count * self.config.kept // self.config.batch
        at = torch.randint(len(self.values), (count + kept,), **self.options)
        keys, ids = self.keys[at].float(), (len(at), self.support)
        if noise:
            keys += noise * torch.randn(keys.shape, **self.options)
        alpha = torch.full((len(at),), self.config.alpha, device=keys.device)
        alpha[count:] = 1.0
        return {
            "keys": keys,
            "targets": self.values[at],
            "token_ids": torch.randint(self.vocab, ids, **self.options),
            "probs": torch.rand(ids, **self.options).softmax(-1),
            "alpha": alpha,
        }


def recipe(sizes: RecipeSizes, job: Job) -> Iterator[Figure]:
    """Yield steps/s, the steps taken of the recipe's, and the loss before and after, by dtype.

    The loss is the mean cross-entropy of the facts' rows in nats, without noise.
    """
    config = load_recipe(sizes.recipe).memory
    batch = min(config.batch, sizes.batch)
    config = replace(config, batch=batch, kept=config.kept * batch // config.batch)
    for number, dtype in enumerate(sizes.dtypes):
        left = (job.until - time.monotonic()) / (len(sizes.dtypes) - number)
        part = replace(config, dtype=dtype)
        yield from _train(sizes, part, replace(job, until=time.monotonic() + left))


def _train(sizes: RecipeSizes, config: MemoryFitConfig, job: Job) -> Iterator[Figure]:
    """Yield the figures of one dtype; the first step, which may compile, is not timed."""
    rows, memory = Rows(sizes, config, job.device), _memory(sizes, config, job.device)
    steps = max(2, sizes.rows // config.batch * config.epochs)
    optimizer = MasterOptimizer(memory, config.optimizer, steps)
    loss, held_out = make_loss(memory, config), rows.batch(4 * config.batch)
    before = _cross_entropy(memory, config, held_out)
    noise, done, start = config.noise * float(rows.keys[:4096].float().std()), 0, 0.0
    while done < steps and not (done > 1 and job.is_over):
        batch = rows.batch(config.batch, noise)
        accumulate(memory, batch, loss, optimizer, config.micro_batch or len(batch["targets"]))
        optimizer.step(done)
        done += 1
        if done == 1:
            synchronise(job.device)
            start = time.perf_counter()
        if done % 16 == 0:  # otherwise the queue of the device would outlast the time
            synchronise(job.device)
    synchronise(job.device)
    rate = (done - 1) / (time.perf_counter() - start)
    name = f"recipe/{sizes.recipe}/{config.dtype}"
    yield Figure(f"{name}/steps", rate, "steps/s")
    yield Figure(f"{name}/rows", rate * config.batch, "rows/s")
    yield Figure(f"{name}/done", done / steps, "share")
    yield Figure(f"{name}/all_steps", steps / rate, "s")
    yield Figure(f"{name}/loss_before", before, "nats")
    yield Figure(f"{name}/loss_after", _cross_entropy(memory, config, held_out), "nats")


def _memory(sizes: RecipeSizes, config: MemoryFitConfig, device: str) -> Memory:
    """Return the recipe's untrained memory, tied to a random head (V, D)."""
    torch.manual_seed(0)
    shape = MemoryConfig(
        hidden_size=sizes.hidden,
        vocab_size=sizes.vocab,
        num_layers=config.blocks,
        intermediate_size=config.intermediate_size,
        tied_head=True,
        context=config.context,
    )
    memory = Memory(shape)
    head = HEAD * torch.randn(sizes.vocab, sizes.hidden)
    memory.lm_head.weight = nn.Parameter(head, requires_grad=False)
    return memory.to(device, getattr(torch, config.dtype))


@torch.no_grad()
def _cross_entropy(memory: Memory, config: MemoryFitConfig, batch: dict[str, Tensor]) -> float:
    """Return the mean cross-entropy of a batch's rows that are facts, nats."""
    facts = batch["alpha"] < 1
    part = {name: values[facts] for name, values in batch.items()}
    _, logs = make_loss(memory, replace(config, compile="off"))(memory, part)
    return float(logs["ce"]) / int(facts.sum())
