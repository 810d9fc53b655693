"""A recipe: the configuration of every stage, as frozen dataclasses that check their values.

The classes are in the order in which a run uses them; Recipe, the last one, has all of them.
"""

import dataclasses
import re
from dataclasses import dataclass, field, fields

from mlpmem.errors import MlpMemError
from mlpmem.model.context import check_half_lives
from mlpmem.retrieval.inverted_file import code_bytes
from train.config.checks import check_choice, check_range
from train.config.corpus import CorpusConfig
from train.config.studies import StudiesConfig


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW for embeddings, norms and heads; Muon for the inner matrices if muon_lr > 0."""

    lr: float = 3e-3
    muon_lr: float = 0.0
    weight_decay: float = 0.01
    warmup: float = 0.03  # share of the steps
    final: float = 0.05  # the last learning rate, as a share of the highest
    clip: float = 1.0  # of the global gradient norm

    def __post_init__(self) -> None:
        """Check ranges."""
        check_range("optimizer", "lr", self.lr, 0, above=True)
        check_range("optimizer", "clip", self.clip, 0, above=True)
        for name, most in (("muon_lr", 1e9), ("weight_decay", 1e9), ("warmup", 1), ("final", 1)):
            check_range("optimizer", name, getattr(self, name), 0, most)


@dataclass(frozen=True)
class DecoderConfig:
    """The decoder: new (Llama family), or an existing one, with or without further training."""

    # model folder, GGUF file, "package:name/file.gguf" or "hub:owner/name"; empty: new, of the
    # shape below
    source: str = ""
    epochs: int = 1  # passes over the training text (atlas: over all draws); 0 trains nothing
    hidden_size: int = 256
    layers: int = 6
    heads: int = 4
    intermediate_size: int = 704
    max_positions: int = 512
    row: int = 128  # tokens per packed row; for a text at least one passage
    batch: int = 6144  # tokens per optimizer step, over all processes
    processes: int = 2  # data-parallel workers on a CPU, one thread each
    dtype: str = "bfloat16"  # of forward and backward; master weights are float32
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        """Check choices and ranges."""
        check_choice("decoder", "dtype", self.dtype, ("bfloat16", "float32"))
        check_range("decoder", "epochs", self.epochs, 0)
        for name in ("hidden_size", "layers", "heads", "intermediate_size", "batch", "processes"):
            check_range("decoder", name, getattr(self, name), 1)
        check_range("decoder", "row", self.row, 2)
        if self.hidden_size % (2 * self.heads):
            raise MlpMemError(
                "decoder: hidden_size must be a multiple of twice the heads "
                f"({2 * self.heads}); got {self.hidden_size}"
            )


@dataclass(frozen=True)
class DatastoreConfig:
    """Which hidden state is the key, and how keys are stored."""

    depth: int = -1  # layer whose FFN input it is
    dtype: str = "float32"  # of the forward pass; keys are always float16
    shard_mib: int = 256  # MiB of keys per file: the unit of work, and what a kill loses
    built: str = ""  # folder of this decoder's datastore, taken as it is; empty: keys are computed

    def __post_init__(self) -> None:
        """Check choices and ranges."""
        check_choice("datastore", "dtype", self.dtype, ("bfloat16", "float16", "float32"))
        check_range("datastore", "shard_mib", self.shard_mib, 1)


MAX_NLL = 100.0  # nats, above the nll of any token


@dataclass(frozen=True)
class TargetsConfig:
    """Which rows the memory learns from, and the datastore's distributions at them."""

    k: int = 128
    temperature: float = 20.0  # of the squared L2 distances
    # every position whose nll by the decoder is higher (nats) is a row; MAX_NLL or more: none
    nll_floor: float = 0.5
    easy_share: float = 0.15  # share of the other positions that are also rows
    rows: str = "stored"  # or "searched" again for every batch, with nothing on disk
    teacher: str = ""  # folder of another datastore to search; empty: the run's own
    # "exact", "ivfsq", "ivfpq", or "auto": exact up to exact_most entries, then ivfsq (D bytes per
    # key, in memory) within search_mib, then ivfpq (64 bytes per key)
    search: str = "auto"
    exact_most: int = 10_000_000
    lists: int = 0  # of an inverted file; 0: chosen from the number of entries
    probes: int = 0  # lists searched; 0: chosen, for at least 3k entries
    search_mib: int = 4096  # of keys in memory; exact search converts the rest by blocks

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
    def needs_nll(self) -> bool:
        """Return whether the choice of rows depends on the decoder's nll."""
        return self.easy_share < 1 and self.nll_floor < MAX_NLL


def kind_of_search(config: TargetsConfig, entries: int, size: int) -> str:
    """Return the search of N = entries keys of D = size: exact, ivfsq or ivfpq."""
    if config.search != "auto":
        return config.search
    if entries <= config.exact_most:
        return "exact"
    return "ivfsq" if entries * code_bytes("ivfsq", size) <= config.search_mib * 2**20 else "ivfpq"


@dataclass(frozen=True)
class MemoryFitConfig:
    """Shape and training of the memory."""

    blocks: int = 6
    intermediate_size: int = 1024
    head: str = "decoder"  # its start: a copy of the decoder's, "free", or "tied" (frozen)
    # start of the rest: the decoder's FFN where it fits, "free", or "identity": blocks that add
    # nothing yet, and the decoder's last norm
    start: str = "decoder"
    # half-lives in tokens of the context vectors that it reads with the hidden state; () for none
    context: tuple[float, ...] = ()
    # in a context vector: all "words" alike, or those that "tell" documents apart more
    token_weights: str = "words"
    # words of a context vector: of the whole "text", or of a chat's last "question" and after it
    words_of: str = "text"
    # whether it also reads the words of the sentences that ask, those with a question mark
    asked: bool = False
    rivals: float = 0.0  # share of rows that have read another row's words, too, as if named
    epochs: int = 8
    batch: int = 1024  # rows per step, over all processes
    micro_batch: int = 0  # rows per pass: less memory, same result; 0: all of a process
    alpha: float = 0.3  # weight of KL(knn || memory); the rest is cross-entropy
    noise: float = 0.1  # standard deviation of Gaussian noise on keys, relative to a key's own
    kept: int = 384  # rows per step of what must stay the decoder's, if the corpus has some
    validation_rows: int = 1024  # held out (at most a tenth) and measured during training
    lmbda: float = 0.5  # weight of the memory in the mix that validation measures
    # divides the logits after training: above 1, a certain decoder prevails more easily
    temperature: float = 1.0
    keep: str = "last"  # the "last" weights, or the "best" on the rows held out
    processes: int = 2  # data-parallel workers on a CPU, one thread each
    dtype: str = "bfloat16"  # of forward and backward; master weights are float32
    compile: str = "auto"  # torch.compile: "on", "off", or "auto": only on a GPU
    trackers: tuple[str, ...] = ()  # accelerate's: "tensorboard", "wandb", "trackio" ...
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1.5e-3))

    def __post_init__(self) -> None:
        """Check choices and ranges."""
        check_choice("memory", "head", self.head, ("decoder", "free", "tied"))
        check_choice("memory", "start", self.start, ("decoder", "free", "identity"))
        check_choice("memory", "token_weights", self.token_weights, ("words", "tell"))
        check_choice("memory", "words_of", self.words_of, ("text", "question"))
        check_half_lives(self.context, "memory")
        check_choice("memory", "keep", self.keep, ("last", "best"))
        check_choice("memory", "dtype", self.dtype, ("bfloat16", "float32"))
        check_choice("memory", "compile", self.compile, ("auto", "on", "off"))
        for name in ("alpha", "lmbda", "rivals"):
            check_range("memory", name, getattr(self, name), 0, 1)
        for name in ("blocks", "intermediate_size", "epochs", "batch", "processes"):
            check_range("memory", name, getattr(self, name), 1)
        for name in ("micro_batch", "validation_rows", "noise", "kept"):
            check_range("memory", name, getattr(self, name), 0)
        if self.words_of == "question" and not self.context:
            raise MlpMemError(
                'memory: words_of = "question" needs half-lives in context, such as [16, 64]'
            )
        if self.asked and self.words_of != "question":
            raise MlpMemError('memory: asked = true needs words_of = "question"')
        if self.rivals and not self.context:
            raise MlpMemError("memory: rivals needs half-lives in context, such as [16, 64]")
        if self.context and self.start == "decoder":
            raise MlpMemError(
                'memory: start must be "free" or "identity" with a context, which the decoder\'s '
                'FFN does not read; got "decoder"'
            )
        check_range("memory", "temperature", self.temperature, 0, above=True)
        if self.head == "tied" and self.temperature != 1:
            raise MlpMemError(
                f'memory: temperature must be 1 with a "tied" head, which is the decoder\'s; got '
                f'{self.temperature}. Use 1, or head = "decoder"'
            )
        if self.keep == "best" and not self.validation_rows:
            raise MlpMemError(
                'memory: validation_rows must be above 0 with keep = "best", which compares on them'
            )


@dataclass(frozen=True)
class RouterFitConfig:
    """The router, which chooses lambda for every token, and the data it is fitted on."""

    units: int = 16  # of its hidden layer; 0: logistic regression
    decay: float = 1e-4  # weight of the squared weights in the loss
    trust: float = 0.4  # factor on the fitted logit; below 1, uncertain sources are averaged
    state: bool = False  # whether it reads the hidden state too, with any context vectors
    evidence: bool = True  # whether it reads which source has been right about the text so far
    noise: float = 0.5  # on what it reads then, in deviations, so that it learns no row by heart
    k: int = 128  # neighbours; k and temperature as in use
    temperature: float = 20.0  # of squared L2
    # atlas
    questions: int = 500  # at most per cell (group, question or statement)
    answers: float = 4.0  # weight of an answer's tokens, relative to others
    # text
    window: int = 256  # tokens the decoder sees at most
    tokens: int = 20_000  # of the validation split

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("units", "decay", "noise"):
            check_range("router", name, getattr(self, name), 0)
        for name in ("k", "questions", "tokens"):
            check_range("router", name, getattr(self, name), 1)
        check_range("router", "window", self.window, 2)
        for name in ("trust", "temperature", "answers"):
            check_range("router", name, getattr(self, name), 0, above=True)


@dataclass(frozen=True)
class ControlsConfig:
    """Memories that differ from the recipe's in a few fields, to see the effect of those."""

    memories: tuple[dict, ...] = ()  # each: fields of [memory] that differ, {alpha = 0.0}
    questions: int = 1000  # at most per cell (group and wording)

    def __post_init__(self) -> None:
        """Check that the fields exist."""
        for changes in self.memories:
            if unknown := changes.keys() - {f.name for f in fields(MemoryFitConfig)}:
                raise MlpMemError(
                    "controls: memories must have fields of [memory], such as {alpha = 0.0}; got "
                    f"unknown {', '.join(sorted(unknown))}"
                )


@dataclass(frozen=True)
class FinetunedConfig:
    """Tuned decoders to compare with: (groups, learning rate, epochs), with LoRA also a rank."""

    settings: tuple[tuple[str, float, int], ...] = (
        ("B", 2e-4, 1),
        ("B", 4e-4, 2),
        ("B", 1e-3, 4),
        ("A1+B", 1e-3, 2),
    )
    lora: tuple[tuple[str, float, int, int], ...] = (
        ("B", 4e-3, 6, 32),  # about the FLOPs of the memory's training
    )
    questions: int = 1000  # at most per cell (group and wording)
    processes: int = 2  # settings trained in parallel on a CPU, one thread each


@dataclass(frozen=True)
class EvaluateConfig:
    """How much is measured, and how the datastore is used."""

    # atlas
    questions: int = 1000  # at most per cell (group and wording)
    k: int = 128
    temperature: float = 20.0
    # text
    window: int = 256  # tokens the decoder sees at most
    stride: int = 128  # tokens scored per window; those before are context
    tokens: int = 50_000  # scored at most, of the test and of the validation split
    ks: tuple[int, ...] = (8, 32, 128, 512)  # neighbours to choose from
    temperatures: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0)  # of squared L2, likewise

    def __post_init__(self) -> None:
        """Check that the window slides and that there are values to choose from."""
        if not 0 < self.stride < self.window or not (self.ks and self.temperatures):
            raise MlpMemError(
                f"evaluate: stride must be from 1 to window - 1 ({self.window - 1}); got "
                f"{self.stride}. ks and temperatures must have one value or more"
            )


@dataclass(frozen=True)
class ExportConfig:
    """What goes into the bundle besides weights and documents."""

    name: str = ""  # of the bundle; empty: the recipe's
    examples: int = 24  # in four groups
    questions: int = 400  # in untrained wordings, half of them new to the decoder
    traces: int = 6  # recorded comparisons, including descriptions
    abouts: int = 2  # descriptions
    auto: bool = False  # the routers choose lambda unless a call names one
    adapters: tuple[str, ...] = ()  # LoRA adapters that the stage finetuned kept, as extra columns
    # "owner/name@commit", a repository of the Hub that also has the file of a decoder given as
    # "package:name/file.gguf"; such a bundle names its decoder and has no datastore
    hub: str = ""

    def __post_init__(self) -> None:
        """Check that a repository is given with its commit."""
        if self.hub and not re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", self.hub):
            raise MlpMemError(
                f'[export] hub must be "owner/name@commit" with a commit of 40 digits; got '
                f"{self.hub!r}"
            )


@dataclass(frozen=True)
class Stated:
    """Sizes stated for an estimate; a recipe that states them does not run.

    A size of 0 follows from the recipe's shapes.
    """

    tokens: int = 0  # of the keyed corpus
    decoder_tokens: int = 0  # the decoder is trained on, over all epochs; 0: it exists
    decoder_parameters: int = 0
    memory_parameters: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, value in dataclasses.asdict(self).items():
            check_range("stated", name, value, 0)


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
