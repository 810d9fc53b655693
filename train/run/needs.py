"""What every stage needs: tokens, bytes on disk and in memory, and FLOP, as formulas over Sizes.

They are estimates, correct to a factor of about two. Letters: P parameters of the decoder, Q of the
memory, M tokens, N entries, R rows; D, V and S as in `train`.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mlpmem.retrieval.inverted_file import PER_LIST, ROUNDS, code_bytes, lists_for
from train.config.tables import Recipe, TargetsConfig, kind_of_search
from train.run.kinds import kind_named
from train.run.sizes import Sizes, sizes_of

BASE = 450 * 2**20  # bytes of an idle process with all imports
CHECKPOINT = 12  # bytes per parameter: master weights and two moments in float32
SHARE_OF_PEAK = {"train": 0.4, "forward": 0.4, "search": 0.4}  # of a large matmul's rate
TOKENISED = 300_000  # tokens/s when a corpus is tokenized


@dataclass(frozen=True)
class Need:
    """What one stage needs."""

    stage: str
    tokens: int  # processed, over all epochs
    entries: int = 0
    disk: int = 0  # bytes that stay
    working: int = 0  # peak bytes on disk while it runs
    memory: int = 0  # bytes of all processes
    host: int = 0  # of these, bytes of main memory if a GPU computes
    flops: float = 0.0
    dtype: str = "float32"  # of its matmuls
    work: str = "forward"  # a key of SHARE_OF_PEAK

    def seconds(self, rate: float, disk_rate: float) -> float:
        """Return estimated seconds, given FLOP/s of a large matmul and bytes/s written.

        They are those of the FLOP, of writing, and of tokenizing a corpus.
        """
        computing = self.flops / (rate * SHARE_OF_PEAK[self.work])
        tokenizing = self.tokens / TOKENISED if self.stage == "corpus" else 0.0
        return computing + self.working / disk_rate + tokenizing


def needs(recipe: Recipe, root: Path) -> dict[str, Need]:
    """Return what every stage of a recipe needs, by name, in order."""
    sizes = sizes_of(recipe, root)
    formulas = (corpus, decoder, datastore, targets, memory, router, controls)
    formulas += (finetuned, evaluate, export)
    return {formula.__name__: formula(recipe, sizes) for formula in formulas}


def corpus(recipe: Recipe, s: Sizes) -> Need:
    """Return the corpus's need: 2 or 4 bytes per token, streamed."""
    size = _id_bytes(s.vocab) * s.corpus
    return Need("corpus", s.corpus, disk=size, working=size, memory=BASE, host=BASE)


def decoder(recipe: Recipe, s: Sizes) -> Need:
    """Return the decoder's need: 6 P FLOP per token learned.

    On disk, 2 bytes per parameter stay; training keeps two checkpoints of 12. In memory, a
    parameter has 16 to 20 bytes: half-precision weight, float32 gradient, master and moments.
    """
    config, trained = recipe.decoder, bool(s.learned)
    rows = config.batch * (config.layers * 16 * s.hidden + 2 * s.vocab // 8) if trained else 0
    base, copies = _processes(config.processes if trained else 1)
    return Need(
        "decoder",
        s.learned,
        disk=2 * s.decoder,
        working=(2 + 2 * CHECKPOINT * trained) * s.decoder,
        memory=base + copies * (20 if trained else 4) * s.decoder + rows,
        host=base,
        flops=6.0 * (s.body + s.head) * s.learned,
        dtype=config.dtype,
        work="train",
    )


def datastore(recipe: Recipe, s: Sizes) -> Need:
    """Return the datastore's need: 2 P FLOP per token, without the head.

    On disk, an entry has 2 D bytes of key and 12 of position and count; the tokens come on top. In
    memory are the decoder, one shard, and 16 bytes per token while entries are counted. A datastore
    that is built already needs no decoder.
    """
    config = recipe.datastore
    size = s.entries * (2 * s.hidden + 12) + _id_bytes(s.vocab) * s.memory
    weights = 0 if config.built else s.decoder * getattr(torch, config.dtype).itemsize
    return Need(
        "datastore",
        s.memory,
        s.entries,
        disk=size,
        working=size,
        memory=BASE + weights + min(config.shard_mib * 2**20, 2 * s.hidden * s.entries)
        + 16 * s.memory,
        host=BASE + 16 * s.memory,
        flops=0.0 if config.built else 2.0 * s.body * s.memory,
        dtype=config.dtype,
    )  # fmt: skip


def targets(recipe: Recipe, s: Sizes) -> Need:
    """Return the targets' need: 2 R N D FLOP of exact search, 2 P per token for the decoder's nll.

    Rows that are drawn evenly need no nll. Above exact_most entries, every key is assigned to one
    of 4 sqrt(N) lists. Then a row is compared with the lists, and with the entries of as many of
    them as hold 3 k entries on average.
    A row has S pairs of an id and a half-precision probability, and is on disk twice while shards
    are joined. In memory are half-precision keys up to search_mib, or the inverted file and the
    keys that train its lists. Nothing else grows with the entries.
    """
    config = recipe.targets
    stored = config.rows == "stored"
    size = 8 * s.rows + stored * round(s.rows * (8 + s.support * (_id_bytes(s.vocab) + 2)))
    search, index = _search(config, s)
    nll = 2.0 * s.decoder * s.memory * config.needs_nll
    return Need(
        "targets",
        s.rows,
        s.entries,
        disk=size,
        working=2 * size,
        memory=BASE + 4 * s.decoder + index,
        host=BASE + (0 if kind_of_search(config, s.entries, s.hidden) == "exact" else index),
        flops=search + nll,
        dtype="bfloat16",
        work="search",
    )


def _search(config: TargetsConfig, s: Sizes) -> tuple[float, int]:
    """Return the FLOP of searching all rows, and the bytes of the index in memory."""
    kind = kind_of_search(config, s.entries, s.hidden)
    if kind == "exact":
        index = min(config.search_mib * 2**20, s.entries * (2 * s.hidden + 8))
        return 2.0 * s.rows * s.entries * s.hidden, index
    lists = config.lists or lists_for(s.entries)
    trained = min(s.entries, PER_LIST * lists)
    probes = max(config.probes or 32, math.ceil(3 * config.k * lists / s.entries))
    compared = s.rows * (lists + probes * s.entries / lists) + s.entries * lists
    index = max(4 * trained * s.hidden, s.entries * code_bytes(kind, s.hidden))
    return 2.0 * s.hidden * (compared + ROUNDS * trained * lists), index


def memory(recipe: Recipe, s: Sizes) -> Need:
    """Return the memory's need: 6 Q FLOP per row and epoch; bytes per parameter as for a decoder.

    In memory are also 24 bytes per row for the order of rows, the decoder, whose head the memory
    starts with, and the index of targets that are searched during training.
    """
    config = recipe.memory
    base, copies = _processes(config.processes)
    index = _search(recipe.targets, s)[1] if recipe.targets.rows == "searched" else 0
    data = 4 * s.decoder + 24 * s.rows
    exact = kind_of_search(recipe.targets, s.entries, s.hidden) == "exact"
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
        memory=base + copies * (20 * parameters + data + index) + activations,
        host=base + copies * (data + (0 if exact else index)),
        flops=6.0 * parameters * rows,
        dtype=config.dtype,
        work="train",
    )


def router(recipe: Recipe, s: Sizes) -> Need:
    """Return the routers' need: that of measuring the data they are fitted on."""
    scored = kind_named(recipe.corpus.kind).router_tokens(recipe)
    return replace(_measured(s, scored), stage="router", disk=2**14)


def finetuned(recipe: Recipe, s: Sizes) -> Need:
    """Return the need of tuned decoders: the decoder's, over the tokens with keys, per epoch.

    With LoRA the decoder's own weights get no gradient: 4 P FLOP per token. A corpus without
    questions needs nothing.
    """
    if not kind_named(recipe.corpus.kind).has_questions or recipe.stated.tokens:
        return Need("finetuned", 0)
    config = recipe.finetuned
    one = decoder(replace(recipe, decoder=replace(recipe.decoder, processes=1)), s)
    base, copies = _processes(config.processes)
    full, lora = (sum(x[2] for x in settings) for settings in (config.settings, config.lora))
    tokens = s.memory * (full + lora)
    return Need(
        "finetuned",
        tokens,
        disk=3 * s.decoder,
        working=2 * CHECKPOINT * s.decoder * copies,
        memory=base + copies * (one.memory - one.host),
        host=base,
        flops=(s.body + s.head) * s.memory * (6.0 * full + 4.0 * lora),
        dtype=one.dtype,
        work="train",
    )


def controls(recipe: Recipe, s: Sizes) -> Need:
    """Return the need of the control memories: the memory's, once per control."""
    one, several = memory(recipe, s), len(recipe.controls.memories)
    if not kind_named(recipe.corpus.kind).has_questions or not several:
        return Need("controls", 0)
    disk, flops = several * one.disk, several * one.flops
    return replace(one, stage="controls", tokens=several * one.tokens, disk=disk, flops=flops)


def evaluate(recipe: Recipe, s: Sizes) -> Need:
    """Return the need of measuring: 2 (P + Q) FLOP per scored token, and its exact search."""
    scored = kind_named(recipe.corpus.kind).scored_tokens(recipe, s.memory)
    return _measured(s, scored)


def _measured(s: Sizes, scored: int) -> Need:
    """Return the need of computing every source at `scored` positions."""
    keys = 2 * s.hidden * s.entries
    size = BASE + 4 * (s.decoder + s.memory_parameters) + 2 * min(keys, 2**33)
    return Need(
        "evaluate",
        scored,
        s.entries,
        disk=2**20,
        working=2**20,
        memory=size,
        host=size,
        flops=2.0 * scored * (s.decoder + s.memory_parameters + s.entries * s.hidden),
        dtype="bfloat16",
        work="search",
    )


def export(recipe: Recipe, s: Sizes) -> Need:
    """Return the need of a bundle: half-precision weights, tokens, and generated examples."""
    disk = 2 * (s.decoder + s.memory_parameters) + _id_bytes(s.vocab) * s.memory
    tokens = 64 * 200
    size = BASE + 4 * (s.decoder + s.memory_parameters) + min(2 * s.hidden * s.entries, 2**33)
    return Need(
        "export",
        tokens,
        s.entries,
        disk=disk,
        working=disk,
        memory=size,
        host=size,
        flops=2.0 * tokens * (s.decoder + s.memory_parameters + s.entries * s.hidden),
    )


def _processes(count: int) -> tuple[int, int]:
    """Return the bytes of idle training processes, and the number of model copies.

    There are `count` processes on a CPU, one on a GPU.
    """
    copies = 1 if torch.cuda.is_available() else count
    return BASE * copies, copies


def _id_bytes(vocab: int) -> int:
    """Return the bytes of a token id on disk."""
    return 2 if vocab <= 2**16 else 4
