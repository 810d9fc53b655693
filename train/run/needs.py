"""What every stage needs: tokens, bytes on disk, memory and FLOPs, as formulas over Sizes.

Estimates, good to a factor of about two.
Letters: P parameters of the decoder, Q of the memory, M tokens, N entries, R rows, D, V, S.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mlpmem.retrieval.inverted_file import PER_LIST, ROUNDS, code_bytes, lists_for
from train.config.tables import Recipe, TargetsConfig, kind_of_search
from train.run.kinds import kind_named
from train.run.sizes import Sizes, sizes_of

BASE = 450 * 2**20  # bytes of a process that has imported everything and does nothing
CHECKPOINT = 12  # bytes a parameter: master weights and two moments in float32
SHARE_OF_PEAK = {"train": 0.4, "forward": 0.4, "search": 0.4}  # of a large matmul's rate
TOKENISED = 300_000  # tokens/s of a corpus


@dataclass(frozen=True)
class Need:
    """What one stage needs."""

    stage: str
    tokens: int  # it goes over, in all its epochs
    entries: int = 0
    disk: int = 0  # bytes that stay
    working: int = 0  # bytes on disk at most while it runs
    memory: int = 0  # bytes, all processes together
    host: int = 0  # of these, what stays in the machine's own where a GPU computes
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
    made = (corpus, decoder, datastore, targets, memory, router, controls)
    kinds = (*made, finetuned, evaluate, export)
    return {kind.__name__: kind(recipe, sizes) for kind in kinds}


def corpus(recipe: Recipe, s: Sizes) -> Need:
    """Return the corpus's need: 2 or 4 bytes a token, read once, never whole in memory."""
    size = _id_bytes(s.vocab) * s.corpus
    return Need("corpus", s.corpus, disk=size, working=size, memory=BASE, host=BASE)


def decoder(recipe: Recipe, s: Sizes) -> Need:
    """Return the decoder's need: 6 P FLOPs a token learned.

    2 bytes a parameter stay; while it trains two checkpoints of 12 stand side by side. In memory a
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
        host=BASE + 16 * s.memory,
        flops=2.0 * s.body * s.memory,
        dtype=config.dtype,
    )  # fmt: skip


def targets(recipe: Recipe, s: Sizes) -> Need:
    """Return the targets' need: 2 R N D FLOPs of exact search, 2 P a token for the decoder's nll.

    Rows that are drawn evenly need no nll. Beyond exact_most entries a row is compared with
    4 sqrt(N) lists and the entries of as many of them as hold 3 k on average; before, every key is
    sorted into its list. A row has S pairs of an id and a half-precision probability, and stands
    twice while shards are joined. In memory: half-precision keys up to search_mib, or the inverted
    file and, before it, the keys its lists are trained on. Nothing else grows with the entries.
    """
    config = recipe.targets
    stored = config.rows == "stored"
    size = 8 * s.rows + stored * round(s.rows * (8 + s.support * (_id_bytes(s.vocab) + 2)))
    search, held = _search(config, s)
    nll = 2.0 * s.decoder * s.memory * config.needs_nll
    return Need(
        "targets",
        s.rows,
        s.entries,
        disk=size,
        working=2 * size,
        memory=BASE + 4 * s.decoder + held,
        host=BASE + (0 if kind_of_search(config, s.entries, s.hidden) == "exact" else held),
        flops=search + nll,
        dtype="bfloat16",
        work="search",
    )


def _search(config: TargetsConfig, s: Sizes) -> tuple[float, int]:
    """Return the FLOPs of searching all rows, and the bytes in memory."""
    kind = kind_of_search(config, s.entries, s.hidden)
    if kind == "exact":
        held = min(config.search_mib * 2**20, s.entries * (2 * s.hidden + 8))
        return 2.0 * s.rows * s.entries * s.hidden, held
    lists = config.lists or lists_for(s.entries)
    trained = min(s.entries, PER_LIST * lists)
    probes = max(config.probes or 32, math.ceil(3 * config.k * lists / s.entries))
    compared = s.rows * (lists + probes * s.entries / lists) + s.entries * lists
    held = max(4 * trained * s.hidden, s.entries * code_bytes(kind, s.hidden))
    return 2.0 * s.hidden * (compared + ROUNDS * trained * lists), held


def memory(recipe: Recipe, s: Sizes) -> Need:
    """Return the memory's need: 6 Q FLOPs a row and epoch; bytes as for a decoder.

    And 24 bytes a row for their order, of this epoch and of all; the decoder, whose head it begins
    with; what targets that are searched for hold.
    """
    config = recipe.memory
    base, copies = _processes(config.processes)
    searched = _search(recipe.targets, s)[1] if recipe.targets.rows == "searched" else 0
    beside = 4 * s.decoder + 24 * s.rows
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
        memory=base + copies * (20 * parameters + beside + searched) + activations,
        host=base + copies * (beside + (0 if exact else searched)),
        flops=6.0 * parameters * rows,
        dtype=config.dtype,
        work="train",
    )


def router(recipe: Recipe, s: Sizes) -> Need:
    """Return the routers' need: what measuring needs, over the validation data they see."""
    scored = kind_named(recipe.corpus.kind).router_tokens(recipe)
    return replace(_measured(s, scored), stage="router", disk=2**14)


def finetuned(recipe: Recipe, s: Sizes) -> Need:
    """Return the need of tuned decoders: the decoder's, over the keyed tokens an epoch each.

    With LoRA the decoder's own weights get no gradient: 4 P FLOPs a token. None without questions.
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
    """Return the need of the memories that differ: the memory's, once each."""
    one, several = memory(recipe, s), len(recipe.controls.memories)
    if not kind_named(recipe.corpus.kind).has_questions or not several:
        return Need("controls", 0)
    disk, flops = several * one.disk, several * one.flops
    return replace(one, stage="controls", tokens=several * one.tokens, disk=disk, flops=flops)


def evaluate(recipe: Recipe, s: Sizes) -> Need:
    """Return the need of measuring: 2 (P + Q) FLOPs a token scored, and exact search of it."""
    scored = kind_named(recipe.corpus.kind).scored_tokens(recipe, s.memory)
    return _measured(s, scored)


def _measured(s: Sizes, scored: int) -> Need:
    """Return the need of asking every source at `scored` positions."""
    keys = 2 * s.hidden * s.entries
    held = BASE + 4 * (s.decoder + s.memory_parameters) + 2 * min(keys, 2**33)
    return Need(
        "evaluate",
        scored,
        s.entries,
        disk=2**20,
        working=2**20,
        memory=held,
        host=held,
        flops=2.0 * scored * (s.decoder + s.memory_parameters + s.entries * s.hidden),
        dtype="bfloat16",
        work="search",
    )


def export(recipe: Recipe, s: Sizes) -> Need:
    """Return the need of a bundle: half-precision weights and the tokens; answers for examples."""
    size = 2 * (s.decoder + s.memory_parameters) + _id_bytes(s.vocab) * s.memory
    tokens = 64 * 200
    held = BASE + 4 * (s.decoder + s.memory_parameters) + min(2 * s.hidden * s.entries, 2**33)
    return Need(
        "export",
        tokens,
        s.entries,
        disk=size,
        working=size,
        memory=held,
        host=held,
        flops=2.0 * tokens * (s.decoder + s.memory_parameters + s.entries * s.hidden),
    )


def _processes(count: int) -> tuple[int, int]:
    """Return the bytes of the processes that train before they do, and how many models they hold.

    A CPU has `count` of them, a GPU one.
    """
    copies = 1 if torch.cuda.is_available() else count
    return BASE * copies, copies


def _id_bytes(vocab: int) -> int:
    """Return the bytes of a token id on disk."""
    return 2 if vocab <= 2**16 else 4
