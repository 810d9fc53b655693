"""A recipe: every stage's configuration, as frozen dataclasses that check what they are given.

A recipe's tables for what comes once a memory is there: router, comparisons, measuring, export.

And sizes that are only stated, for an estimate.
"""

import dataclasses
import re
from dataclasses import dataclass, field, fields

from mlpmem.errors import MlpMemError
from mlpmem.retrieval.inverted_file import code_bytes
from train.config.checks import check_choice, check_range
from train.config.studies import StudiesConfig


@dataclass(frozen=True)
class RouterFitConfig:
    """What chooses lambda token by token, and on how much of the validation data it is fitted."""

    units: int = 16  # of its hidden layer; 0 is a logistic regression
    decay: float = 1e-4  # weight of the squared weights in the loss
    trust: float = 0.4  # share of the fitted logit that is kept: sources that doubt are averaged
    k: int = 128  # neighbours, and their temperature: as the datastore will be used
    temperature: float = 20.0
    # atlas
    questions: int = 500  # at most, of a cell (group, question or statement)
    answers: float = 4.0  # how much more a token of an answer counts than another
    # text
    window: int = 256  # tokens the decoder sees at most
    tokens: int = 20_000  # of the validation split

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("units", "decay"):
            check_range("router", name, getattr(self, name), 0)
        for name in ("k", "questions", "tokens"):
            check_range("router", name, getattr(self, name), 1)
        check_range("router", "window", self.window, 2)
        for name in ("trust", "temperature", "answers"):
            check_range("router", name, getattr(self, name), 0, above=True)


@dataclass(frozen=True)
class FinetunedConfig:
    """Which tuned decoders stand beside: (groups, learning rate, epochs), with LoRA also a rank."""

    settings: tuple[tuple[str, float, int], ...] = (
        ("B", 2e-4, 1),
        ("B", 4e-4, 2),
        ("B", 1e-3, 4),
        ("A1+B", 1e-3, 2),
    )
    lora: tuple[tuple[str, float, int, int], ...] = (
        ("B", 4e-3, 6, 32),  # about as many FLOPs as the memory's training
    )
    questions: int = 1000  # at most, of a cell (group and wording)
    processes: int = 2  # settings trained at once on a CPU, one thread each


@dataclass(frozen=True)
class EvaluateConfig:
    """How much is asked, and how the datastore is used."""

    # atlas
    questions: int = 1000  # at most, of a cell (group and wording)
    k: int = 128
    temperature: float = 20.0
    # text
    window: int = 256  # tokens the decoder sees at most
    stride: int = 128  # tokens scored a window, those before are context
    tokens: int = 50_000  # scored at most of the test split, and for tuning of the validation split
    ks: tuple[int, ...] = (8, 32, 128, 512)  # neighbours to choose from
    temperatures: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0)  # of squared L2, likewise

    def __post_init__(self) -> None:
        """Raise MlpMemError for a window that cannot slide or nothing to choose from."""
        if not 0 < self.stride < self.window or not (self.ks and self.temperatures):
            raise MlpMemError(
                f"evaluate: stride {self.stride} must be within 1 and window {self.window} - 1, "
                "and ks and temperatures need a value each"
            )


@dataclass(frozen=True)
class ExportConfig:
    """What goes into the bundle besides weights and documents."""

    name: str = ""  # of the bundle; none: the recipe's
    examples: int = 24  # in four groups
    questions: int = 400  # in untrained wordings, half of them new to the decoder
    traces: int = 6  # recorded comparisons, descriptions among them
    abouts: int = 2  # descriptions
    auto: bool = False  # the routers choose lambda unless a call names one
    adapters: tuple[str, ...] = ()  # names of the stage finetuned's kept LoRA, as columns beside


@dataclass(frozen=True)
class Stated:
    """Sizes of what is not here, for a ledger alone: a recipe that states them does not run.

    0 leaves a size to the recipe's shapes.
    """

    tokens: int = 0  # of the corpus that is keyed
    decoder_tokens: int = 0  # a decoder is trained on, over all epochs; 0: it exists
    decoder_parameters: int = 0
    memory_parameters: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, value in dataclasses.asdict(self).items():
            check_range("stated", name, value, 0)


EVEN = 100.0  # nats; no decoder finds a token so hard, so rows are drawn evenly


@dataclass(frozen=True)
class AtlasOptions:
    """How often and how variously the atlas says its facts; the shipped bundle has these values."""

    question_forms: int = 15  # of each relation, the first so many
    statement_forms: int = 12
    about_forms: int = 7
    memory_statements: int = 2  # fixed wordings of a fact in the memory's corpus
    memory_questions: int = 3
    known_wordings: int = 0  # of each sort for a fact of A1 there; 0 as many as for one of B
    strangers: float = 0.0  # passages about one-off names, as a share of the decoder's others
    memory_strangers: float = 0.0  # likewise in the memory's corpus
    odd_words: float = 0.0  # share of the decoder's questions that have made-up words among theirs


KINDS = {  # kind of corpus: the class that has all that differs, imported when it is asked
    "atlas": "train.stages.atlas:AtlasKind",
    "text": "train.stages.text:TextKind",
}


@dataclass(frozen=True)
class CorpusConfig:
    """Where text comes from and how it is tokenised."""

    kind: str = "atlas"  # of KINDS: "atlas", or "text", documents of one's own
    vocab_size: int = 4096  # of the tokenizer that is trained
    # atlas
    scale: float = 1.0  # share of the corpus's entities
    draws: int = 9  # epochs of the decoder, each with its own choice of wordings
    together: bool = False  # the decoder reads, in every epoch, what the memory remembers too
    atlas: AtlasOptions = field(default_factory=AtlasOptions)
    # text: files, folders, patterns (.txt .md .jsonl .parquet, also .gz .bz2 .xz), or
    # "hub:owner/name[:configuration[:split]]"
    train: tuple[str, ...] = ()
    valid: tuple[str, ...] = ()  # none: drawn from the training documents
    test: tuple[str, ...] = ()  # likewise
    shares: tuple[float, float] = (0.05, 0.05)  # of documents, for valid and test where drawn
    # regular expression of a line that begins a document; group 1 is the title. By (?<=...) and
    # (?=...) it may look at the line before and the line after
    heading: str = ""
    separator: str = ""  # a line that stands between documents
    text_field: str = "text"  # of a row of JSON lines, Parquet or the Hub
    title_field: str = "title"
    passage: int = 256  # tokens a document is cut into; each passage is keyed on its own
    tokenizer: str = ""  # folder, or "hub:owner/name"; none: the decoder's, or one is trained
    attributions: tuple[str, ...] = ()  # where the text comes from and its licence

    @property
    def cut(self) -> bool:
        """Return whether documents are cut into passages of `passage` tokens; an atlas is not."""
        return self.kind != "atlas"

    def __post_init__(self) -> None:
        """Raise MlpMemError for values no corpus can have."""
        check_choice("corpus", "kind", self.kind, tuple(KINDS))
        check_range("corpus", "vocab_size", self.vocab_size, 258)  # every byte, BOS and EOS
        check_range("corpus", "scale", self.scale, 0, 1, above=True)
        check_range("corpus", "draws", self.draws, 1)
        split = len(self.shares) == 2 and min(self.shares) >= 0 and sum(self.shares) < 1
        if self.passage < 2 or not split:
            raise MlpMemError(
                f"corpus: passage is {self.passage} and must be 2 tokens or more; shares is "
                f"{self.shares} and must be two numbers from 0 whose sum is below 1"
            )
        try:
            re.compile(self.heading, re.MULTILINE)
        except re.error as error:
            raise MlpMemError(
                f"corpus: heading {self.heading!r} is no regular expression ({error}); write it "
                "between single quotes in TOML, which keep backslashes"
            ) from error


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW for embeddings, norms and heads, and Muon for inner matrices where muon_lr > 0."""

    lr: float = 3e-3
    muon_lr: float = 0.0
    weight_decay: float = 0.01
    warmup: float = 0.03  # share of the steps
    final: float = 0.05  # what the learning rate falls to, as a share of the highest
    clip: float = 1.0  # of the global gradient norm

    def __post_init__(self) -> None:
        """Check ranges."""
        check_range("optimizer", "lr", self.lr, 0, above=True)
        check_range("optimizer", "clip", self.clip, 0, above=True)
        for name, most in (("muon_lr", 1e9), ("weight_decay", 1e9), ("warmup", 1), ("final", 1)):
            check_range("optimizer", name, getattr(self, name), 0, most)


@dataclass(frozen=True)
class DecoderConfig:
    """The decoder: made from nothing (Llama family), or an existing one, trained on or as it is."""

    source: str = ""  # transformers folder, GGUF file or "hub:owner/name"; none: made from a shape
    epochs: int = 1  # passes over the training text (atlas: over all draws); 0 trains nothing
    hidden_size: int = 256
    layers: int = 6
    heads: int = 4
    intermediate_size: int = 704
    max_positions: int = 512
    row: int = 128  # tokens a packed row; a text's rows hold a whole passage at least
    batch: int = 6144  # tokens an optimizer step, over all processes
    processes: int = 2  # data-parallel workers on a CPU, one thread each
    dtype: str = "bfloat16"  # of forward and backward; master weights are float32
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        """Check choices and ranges; a head needs an even share of the hidden size."""
        check_choice("decoder", "dtype", self.dtype, ("bfloat16", "float32"))
        check_range("decoder", "epochs", self.epochs, 0)
        for name in ("hidden_size", "layers", "heads", "intermediate_size", "batch", "processes"):
            check_range("decoder", name, getattr(self, name), 1)
        check_range("decoder", "row", self.row, 2)
        if self.hidden_size % (2 * self.heads):
            raise MlpMemError(
                f"decoder: hidden_size {self.hidden_size} cannot be cut into {self.heads} heads of "
                "an even size; make it a multiple of twice the heads"
            )


@dataclass(frozen=True)
class DatastoreConfig:
    """Which hidden state is the key, and how keys are kept."""

    depth: int = -1  # layer whose FFN input it is
    dtype: str = "float32"  # the decoder computes in; keys are float16 whatever it is
    shard_mib: int = 256  # MiB of keys a file: what a kill can cost, and what processes share out

    def __post_init__(self) -> None:
        """Check choices and ranges."""
        check_choice("datastore", "dtype", self.dtype, ("bfloat16", "float16", "float32"))
        check_range("datastore", "shard_mib", self.shard_mib, 1)


@dataclass(frozen=True)
class TargetsConfig:
    """Which rows the memory learns from, and what the datastore answers there."""

    k: int = 128
    temperature: float = 20.0  # of the squared L2 distances
    # every position the decoder finds harder than this (nats) is a row; EVEN and more: none is
    nll_floor: float = 0.5
    easy_share: float = 0.15  # share of the other positions that are rows too
    rows: str = "stored"  # or "searched" again for every batch: nothing is kept on disk
    teacher: str = ""  # folder of a datastore whose keys are searched; none: the memory's own
    search: str = "auto"  # "exact", "ivfsq", "ivfpq"; auto is exact up to exact_most entries, then
    # ivfsq (D bytes a key, in memory) as far as search_mib allows, then ivfpq (64 bytes a key)
    exact_most: int = 10_000_000
    lists: int = 0  # of an inverted file; 0 chooses from the number of entries
    probes: int = 0  # lists searched; 0 chooses, 3k entries are the least
    search_mib: int = 4096  # of keys kept for searching; exact search makes more block by block

    def __post_init__(self) -> None:
        """Check choices and ranges."""
        check_choice("targets", "rows", self.rows, ("stored", "searched"))
        check_choice("targets", "search", self.search, ("auto", "exact", "ivfsq", "ivfpq"))
        check_range("targets", "k", self.k, 1)
        check_range("targets", "temperature", self.temperature, 0, above=True)
        check_range("targets", "easy_share", self.easy_share, 0, 1)
        for name in ("exact_most", "lists", "probes", "search_mib"):
            check_range("targets", name, getattr(self, name), 0)

    @property
    def judged(self) -> bool:
        """Return whether the decoder's nll has a say in which positions are rows."""
        return self.easy_share < 1 and self.nll_floor < EVEN


@dataclass(frozen=True)
class MemoryFitConfig:
    """Shape and training of the memory; MlpMemError for a choice that is none."""

    blocks: int = 6
    intermediate_size: int = 1024
    head: str = "decoder"  # how it starts: a copy of the decoder's, "free", or "tied" to it, frozen
    start: str = "decoder"  # how the rest starts: as the decoder's FFN where that fits, or "free"
    epochs: int = 8
    batch: int = 1024  # rows a step, over all processes
    micro_batch: int = 0  # rows a pass, 0 all of a process's: less memory, the same result
    alpha: float = 0.3  # weight of KL(knn || memory); the rest is cross-entropy
    noise: float = 0.1  # standard deviation of Gaussian noise on keys, in units of a key's own
    validation_rows: int = 1024  # rows held out (a tenth of all at most) and measured as it trains
    lmbda: float = 0.5  # weight of the memory in the mix that validation measures
    # its logits are divided by this once it is trained: above 1 it gives way more easily to a
    # decoder that is certain
    temperature: float = 1.0
    keep: str = "last"  # which weights: the "last", or those "best" on the rows held out
    processes: int = 2  # data-parallel workers on a CPU, one thread each
    dtype: str = "bfloat16"  # of forward and backward; master weights are float32
    compile: str = "auto"  # torch.compile: "on", "off", or "auto", on a GPU alone
    trackers: tuple[str, ...] = ()  # accelerate's: "tensorboard", "wandb", "trackio" ...
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1.5e-3))

    def __post_init__(self) -> None:
        """Check choices and ranges."""
        check_choice("memory", "head", self.head, ("decoder", "free", "tied"))
        check_choice("memory", "start", self.start, ("decoder", "free"))
        check_choice("memory", "keep", self.keep, ("last", "best"))
        check_choice("memory", "dtype", self.dtype, ("bfloat16", "float32"))
        check_choice("memory", "compile", self.compile, ("auto", "on", "off"))
        for name in ("alpha", "lmbda"):
            check_range("memory", name, getattr(self, name), 0, 1)
        for name in ("blocks", "intermediate_size", "epochs", "batch", "processes"):
            check_range("memory", name, getattr(self, name), 1)
        for name in ("micro_batch", "validation_rows", "noise"):
            check_range("memory", name, getattr(self, name), 0)
        check_range("memory", "temperature", self.temperature, 0, above=True)
        if self.head == "tied" and self.temperature != 1:
            raise MlpMemError(
                f'memory: temperature {self.temperature} changes the head, and a "tied" one is the '
                'decoder\'s; make it 1, or take head = "decoder"'
            )
        if self.keep == "best" and not self.validation_rows:
            raise MlpMemError(
                'memory: keep "best" needs validation_rows above 0: nothing else says what is best'
            )


@dataclass(frozen=True)
class ControlsConfig:
    """Memories that differ from the recipe's in something, to see what that something does."""

    memories: tuple[dict, ...] = ()  # fields of [memory], each set that differs: {alpha = 0.0}
    questions: int = 1000  # at most, of a cell (group and wording)

    def __post_init__(self) -> None:
        """Raise MlpMemError for a field that no memory has."""
        for given in self.memories:
            if unknown := given.keys() - {f.name for f in fields(MemoryFitConfig)}:
                raise MlpMemError(
                    f"[controls] memories: unknown {', '.join(sorted(unknown))}; a memory's own "
                    "fields may differ, such as {alpha = 0.0}"
                )


@dataclass(frozen=True)
class Recipe:
    """All stages of one bundle."""

    name: str
    seed: int = 0
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    datastore: DatastoreConfig = field(default_factory=DatastoreConfig)
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    memory: MemoryFitConfig = field(default_factory=MemoryFitConfig)
    router: RouterFitConfig = field(default_factory=RouterFitConfig)
    controls: ControlsConfig = field(default_factory=ControlsConfig)
    finetuned: FinetunedConfig = field(default_factory=FinetunedConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    studies: StudiesConfig = field(default_factory=StudiesConfig)
    stated: Stated = field(default_factory=Stated)


def kind_of_search(config: TargetsConfig, entries: int, size: int) -> str:
    """Return how N entries of keys of D = size are searched: exact, ivfsq or ivfpq."""
    if config.search != "auto":
        return config.search
    if entries <= config.exact_most:
        return "exact"
    return "ivfsq" if entries * code_bytes("ivfsq", size) <= config.search_mib * 2**20 else "ivfpq"
