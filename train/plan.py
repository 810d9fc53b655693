"""What every stage needs: tokens, bytes on disk, memory and FLOPs, as formulas over Sizes.

Estimates, good to a factor of about two; a stage that cannot fit is refused before it starts.
Letters: P parameters of the decoder, Q of the memory, M tokens, N entries, R rows, D, V, S.
"""

import math
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from mlpmem.errors import MlpMemError
from train.recipe import Recipe
from train.sizes import Sizes, sizes_of

BASE = 450 * 2**20  # bytes of a process that has imported everything and does nothing
HELD_OUT = 33  # tokens of the atlas's held-out documents for a hundred of the memory's
CHECKPOINT = 12  # bytes a parameter: master weights and two moments in float32
SHARE_OF_PEAK = {"train": 0.4, "forward": 0.4, "search": 0.4}  # of a large matmul's rate
PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")
TOKENISED = 300_000  # tokens/s of a corpus


@dataclass(frozen=True)
class Need:
    """What one stage needs."""

    stage: str
    tokens: int  # it goes over, in all its epochs
    entries: int = 0
    disk: int = 0  # bytes that stay
    working: int = 0  # bytes on disk at most while it runs
    memory: int = 0  # bytes, of the device that computes
    flops: float = 0.0
    dtype: str = "float32"  # of its matmuls
    work: str = "forward"  # a key of SHARE_OF_PEAK

    def seconds(self, rate: float, disk_rate: float) -> float:
        """Return about how long it takes, from FLOP/s of a large matmul and bytes/s written.

        FLOPs at a share of the rate, plus what is written, plus tokenising for the corpus.
        """
        computing = self.flops / (rate * SHARE_OF_PEAK[self.work])
        reading = self.tokens / TOKENISED if self.stage == "corpus" else 0.0
        return computing + self.working / disk_rate + reading


def needs(recipe: Recipe, root: Path) -> dict[str, Need]:
    """Return what every stage of a recipe needs, by name, in their order."""
    sizes = sizes_of(recipe, root)
    kinds = (corpus, decoder, datastore, targets, memory, controls, finetuned, evaluate, export)
    return {kind.__name__: kind(recipe, sizes) for kind in kinds}


def corpus(recipe: Recipe, s: Sizes) -> Need:
    """Return the corpus's need: 2 or 4 bytes a token, read once, never whole in memory."""
    size = _id_bytes(s.vocab) * s.corpus
    return Need("corpus", s.corpus, disk=size, working=size, memory=BASE)


def decoder(recipe: Recipe, s: Sizes) -> Need:
    """Return the decoder's need: 6 P FLOPs a token learned.

    2 bytes a parameter stay; while it trains two checkpoints of 12 stand side by side. In memory a
    parameter has 16 to 20 bytes: half-precision weight, float32 gradient, master and moments.
    """
    config, trained = recipe.decoder, bool(s.learned)
    rows = config.batch * (config.layers * 16 * s.hidden + 2 * s.vocab // 8) if trained else 0
    return Need(
        "decoder",
        s.learned,
        disk=2 * s.decoder,
        working=(2 + 2 * CHECKPOINT * trained) * s.decoder,
        memory=BASE + (20 if trained else 4) * s.decoder + rows,
        flops=6.0 * (s.body + s.head) * s.learned,
        dtype=config.dtype,
        work="train",
    )


def datastore(recipe: Recipe, s: Sizes) -> Need:
    """Return the datastore's need: 2 P FLOPs a token, without the head.

    On disk 2 D bytes of key and 12 of position and count an entry, and the tokens; in memory the
    decoder, a shard and 16 bytes a token while entries are counted, no more for more keys.
    """
    config = recipe.datastore
    size = s.entries * (2 * s.hidden + 12) + _id_bytes(s.vocab) * s.memory
    weights = s.decoder * getattr(torch, config.dtype).itemsize
    return Need(
        "datastore",
        s.memory,
        s.entries,
        disk=size,
        working=size,
        memory=BASE + weights + min(config.shard_mib * 2**20, 2 * s.hidden * s.entries)
        + 16 * s.memory,
        flops=2.0 * s.body * s.memory,
        dtype=config.dtype,
    )  # fmt: skip


def targets(recipe: Recipe, s: Sizes) -> Need:
    """Return the targets' need: 2 R N D FLOPs of exact search, 2 P a token for the decoder's nll.

    Beyond exact_most entries a row is compared with 4 sqrt(N) lists and the entries of as many of
    them as hold 3 k on average. A row has S pairs of an id and a half-precision probability, and
    stands twice while shards are joined. In memory: half-precision keys up to search_mib, a few
    bytes an entry.
    """
    stored = recipe.targets.rows == "stored"
    size = 8 * s.rows + stored * round(s.rows * (8 + s.support * (_id_bytes(s.vocab) + 2)))
    keys = min(recipe.targets.search_mib * 2**20, s.entries * (2 * s.hidden + 8))
    return Need(
        "targets",
        s.rows,
        s.entries,
        disk=size,
        working=2 * size,
        memory=BASE + 4 * s.decoder + keys + 8 * s.entries,
        flops=2.0
        * s.rows
        * _compared(s.entries, recipe.targets.k, recipe.targets.exact_most)
        * s.hidden
        + 2.0 * s.decoder * s.memory,
        dtype="bfloat16",
        work="search",
    )


def memory(recipe: Recipe, s: Sizes) -> Need:
    """Return the memory's need: 6 Q FLOPs a row and epoch; bytes as for a decoder."""
    config = recipe.memory
    rows = s.rows * config.epochs
    parameters = s.memory_parameters
    batch = config.micro_batch or config.batch
    activations = batch * config.blocks * (4 * s.hidden + 6 * config.intermediate_size)
    return Need(
        "memory",
        rows,
        s.entries,
        disk=2 * parameters,
        working=(2 + 2 * CHECKPOINT) * parameters,
        memory=BASE + 20 * parameters + activations + 4 * s.entries,
        flops=6.0 * parameters * rows,
        dtype=config.dtype,
        work="train",
    )


def finetuned(recipe: Recipe, s: Sizes) -> Need:
    """Return the need of tuned decoders: the decoder's, over the keyed tokens an epoch each.

    With LoRA the decoder's own weights get no gradient: 4 P FLOPs a token. Text corpora have none.
    """
    if recipe.corpus.kind != "atlas" or recipe.stated.tokens:
        return Need("finetuned", 0)
    config, one = recipe.finetuned, decoder(recipe, s)
    full, lora = (sum(x[2] for x in settings) for settings in (config.settings, config.lora))
    tokens = s.memory * (full + lora)
    return Need(
        "finetuned",
        tokens,
        disk=3 * s.decoder,
        working=2 * CHECKPOINT * s.decoder * config.processes,
        memory=one.memory * config.processes,
        flops=(s.body + s.head) * s.memory * (6.0 * full + 4.0 * lora),
        dtype=one.dtype,
        work="train",
    )


def controls(recipe: Recipe, s: Sizes) -> Need:
    """Return the need of the memories that differ: the memory's, once each."""
    one, several = memory(recipe, s), len(recipe.controls.memories)
    if recipe.corpus.kind != "atlas" or not several:
        return Need("controls", 0)
    disk, flops = several * one.disk, several * one.flops
    return replace(one, stage="controls", tokens=several * one.tokens, disk=disk, flops=flops)


def evaluate(recipe: Recipe, s: Sizes) -> Need:
    """Return the need of measuring: 2 (P + Q) FLOPs a token scored and a search, keys in memory."""
    config = recipe.evaluate
    scored = 2 * config.tokens * config.window // config.stride
    if recipe.corpus.kind == "atlas":
        scored = 12 * config.questions * 4 + HELD_OUT * s.memory // 100
    keys = 2 * s.hidden * s.entries
    found = _compared(s.entries, config.k, recipe.targets.exact_most) * s.hidden
    return Need(
        "evaluate",
        scored,
        s.entries,
        disk=2**20,
        working=2**20,
        memory=BASE + 4 * (s.decoder + s.memory_parameters) + 2 * min(keys, 2**33),
        flops=2.0 * scored * (s.decoder + s.memory_parameters + found),
        dtype="bfloat16",
        work="search",
    )


def export(recipe: Recipe, s: Sizes) -> Need:
    """Return the need of a bundle: half-precision weights and the tokens; answers for examples."""
    size = 2 * (s.decoder + s.memory_parameters) + _id_bytes(s.vocab) * s.memory
    tokens, found = (
        64 * 200,
        _compared(s.entries, recipe.evaluate.k, recipe.targets.exact_most) * s.hidden,
    )
    return Need(
        "export",
        tokens,
        s.entries,
        disk=size,
        working=size,
        memory=BASE + 4 * (s.decoder + s.memory_parameters) + min(2 * s.hidden * s.entries, 2**33),
        flops=2.0 * tokens * (s.decoder + s.memory_parameters + found),
    )


def _compared(entries: int, k: int, exact_most: int) -> float:
    """Return with how many vectors a query is compared: all keys, or lists and what is probed."""
    if entries <= exact_most:
        return float(entries)
    lists = 4 * math.isqrt(entries)
    probes = max(32, math.ceil(3 * k * lists / entries))
    return lists + probes * entries / lists


def _id_bytes(vocab: int) -> int:
    """Return the bytes of a token id on disk."""
    return 2 if vocab <= 2**16 else 4


def check_fits(need: Need, root: Path) -> dict:
    """Return the need as plain values; MlpMemError where this disk or memory is too small for it.

    What an earlier run left in the stage's folder counts as there already.
    """
    partial = root / f"{need.stage}.partial"
    there = sum(p.stat().st_size for p in partial.rglob("*") if p.is_file())
    free, total = free_disk(root), total_memory()
    if need.working - there > free:
        raise MlpMemError(
            f"{need.stage}: it needs about {size_text(need.working - there)} of disk while it runs "
            f"({size_text(need.disk)} stay), {size_text(free)} are free at {root}. Free some, give "
            "another disk with --runs, or make the recipe smaller; `python -m train plan` shows "
            "the whole ledger. Nothing was touched"
        )
    if need.memory > total:
        raise MlpMemError(
            f"{need.stage}: it needs about {size_text(need.memory)} of memory, this device has "
            f"{size_text(total)}. Use a larger one, or make the recipe smaller; "
            "`python -m train plan` shows the whole ledger. Nothing was touched"
        )
    return asdict(need)


def free_disk(root: Path) -> int:
    """Return the bytes free where root is or will be."""
    here = root.absolute()
    return shutil.disk_usage(next(p for p in (here, *here.parents) if p.exists())).free


def total_memory() -> int:
    """Return the bytes of memory of the GPU that would compute, or of this machine."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    import psutil

    return psutil.virtual_memory().total


def size_text(size: float) -> str:
    """Return bytes as a person reads them."""
    return number_text(size, "B")


def number_text(value: float, unit: str = "") -> str:
    """Return a number with three digits and k, M, G ... before its unit."""
    power = 0
    while abs(value) >= 999.5 and power < len(PREFIXES) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {PREFIXES[power]}{unit}".strip()
