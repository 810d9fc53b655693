"""A recipe: every stage's configuration, as frozen dataclasses read from one TOML file."""

import dataclasses
import re
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_origin

from mlpmem.errors import MlpMemError


@dataclass(frozen=True)
class Atlas:
    """How often and how variously the atlas says its facts; the shipped bundle has these values."""

    question_forms: int = 15  # of each relation, the first so many
    statement_forms: int = 12
    about_forms: int = 7
    memory_statements: int = 2  # fixed wordings of a fact in the memory's corpus
    memory_questions: int = 3
    known_wordings: int = 0  # of each sort for a fact of A1 there; 0 as many as for one of B
    strangers: float = 0.0  # passages about one-off names, as a share of the decoder's others


@dataclass(frozen=True)
class Corpus:
    """Where text comes from and how it is tokenised."""

    kind: str = "atlas"  # "atlas", or "text": documents of one's own
    vocab_size: int = 4096  # of the tokenizer that is trained
    # atlas
    scale: float = 1.0  # share of the corpus's entities
    draws: int = 9  # epochs of the decoder, each with its own choice of wordings
    together: bool = False  # the decoder reads, in every epoch, what the memory remembers too
    atlas: Atlas = field(default_factory=Atlas)
    # text: files, folders (.txt .md .jsonl .parquet), or "hub:owner/name[:configuration[:split]]"
    train: tuple[str, ...] = ()
    valid: tuple[str, ...] = ()  # none: drawn from the training documents
    test: tuple[str, ...] = ()  # likewise
    shares: tuple[float, float] = (0.05, 0.05)  # of documents, for valid and test where drawn
    heading: str = ""  # regular expression of a line that begins a document; group 1 is the title
    separator: str = ""  # a line that stands between documents
    text_field: str = "text"  # of a row of JSON lines, Parquet or the Hub
    title_field: str = "title"
    passage: int = 256  # tokens a document is cut into; each passage is keyed on its own
    tokenizer: str = ""  # folder, or "hub:owner/name"; none: the decoder's, or one is trained
    attributions: tuple[str, ...] = ()  # where the text comes from and its licence

    def __post_init__(self) -> None:
        """Raise MlpMemError for values no corpus can have."""
        _one_of("corpus", "kind", self.kind, ("atlas", "text"))
        if self.passage < 2 or len(self.shares) != 2 or not 0 <= sum(self.shares) < 1:
            raise MlpMemError(
                f"corpus: passage is {self.passage} and must be 2 tokens or more; shares is "
                f"{self.shares} and must be two numbers from 0 whose sum is below 1"
            )
        try:
            re.compile(self.heading)
        except re.error as error:
            raise MlpMemError(
                f"corpus: heading {self.heading!r} is no regular expression ({error}); write it "
                "between single quotes in TOML, which keep backslashes"
            ) from error


@dataclass(frozen=True)
class Optimizer:
    """AdamW for embeddings, norms and heads, and Muon for inner matrices where muon_lr > 0."""

    lr: float = 3e-3
    muon_lr: float = 0.0
    weight_decay: float = 0.01
    warmup: float = 0.03  # share of the steps
    final: float = 0.05  # last learning rate as a share of the first
    clip: float = 1.0  # of the global gradient norm


@dataclass(frozen=True)
class Decoder:
    """The decoder: made from nothing (Llama family), or an existing one, trained on or as it is."""

    source: str = ""  # folder of transformers, or "hub:owner/name"; none: made from the shape below
    epochs: int = 1  # passes over the training text (atlas: over all draws); 0 trains nothing
    hidden_size: int = 256
    layers: int = 6
    heads: int = 4
    intermediate_size: int = 704
    max_positions: int = 512
    row: int = 128  # tokens a packed row; longer passages are cut
    batch: int = 6144  # tokens an optimizer step, over all processes
    processes: int = 2  # data-parallel workers on a CPU, one thread each
    dtype: str = "bfloat16"  # of forward and backward; master weights are float32
    optimizer: Optimizer = field(default_factory=Optimizer)


@dataclass(frozen=True)
class Datastore:
    """Which hidden state is the key, and how keys are kept."""

    depth: int = -1  # layer whose FFN input it is
    dtype: str = "float32"  # the decoder computes in; keys are float16 whatever it is
    shard_mib: int = 256  # MiB of keys a file: what a kill can cost, and what processes share out

    def __post_init__(self) -> None:
        """Check choices and ranges."""
        _check_choice("datastore", "dtype", self.dtype, ("bfloat16", "float16", "float32"))
        _check_range("datastore", "shard_mib", self.shard_mib, 1)


@dataclass(frozen=True)
class Targets:
    """Which rows the memory learns from, and what the datastore answers there."""

    k: int = 128
    temperature: float = 20.0  # of the squared L2 distances
    nll_floor: float = 0.5  # every position the decoder finds harder than this (nats) is a row
    easy_share: float = 0.15  # share of the other positions that are rows too
    rows: str = "stored"  # or "searched" again for every batch: nothing is kept on disk
    teacher: str = ""  # folder of a datastore whose keys are searched; none: the memory's own
    search: str = "auto"  # "exact", "ivfsq", "ivfpq"; auto is exact up to exact_most entries
    exact_most: int = 10_000_000
    lists: int = 0  # of an inverted file; 0 chooses from the number of entries
    probes: int = 0  # lists searched; 0 chooses, 3k entries are the least
    search_mib: int = 4096  # of coarse keys kept for exact search; beyond, made block by block

    def __post_init__(self) -> None:
        """Raise MlpMemError for values outside what is allowed."""
        allowed = {"rows": ("stored", "searched"), "search": ("auto", "exact", "ivfsq", "ivfpq")}
        for name, choices in allowed.items():
            if getattr(self, name) not in choices:
                raise MlpMemError(
                    f"targets: {name} is {getattr(self, name)!r}, it must be one of "
                    f"{', '.join(choices)}"
                )
        if self.k < 1 or self.temperature <= 0:
            raise MlpMemError(
                f"targets: k is {self.k} and must be 1 or more; temperature is "
                f"{self.temperature} and must be above 0"
            )


@dataclass(frozen=True)
class Memory:
    """Shape and training of the memory; MlpMemError for a choice that is none."""

    blocks: int = 6
    intermediate_size: int = 1024
    head: str = "decoder"  # how it starts: a copy of the decoder's, "free", or "tied" to it, frozen
    epochs: int = 8
    batch: int = 1024  # rows a step, over all processes
    micro_batch: int = 0  # rows a pass, 0 all of a process's: less memory, the same result
    alpha: float = 0.3  # weight of KL(knn || memory); the rest is cross-entropy
    noise: float = 0.1  # standard deviation of Gaussian noise on keys, in units of a key's own
    validation_rows: int = 1024  # rows held out (a tenth of all at most) and measured as it trains
    lmbda: float = 0.5  # weight of the memory in the mix that validation measures
    keep: str = "last"  # which weights: the "last", or those "best" on the rows held out
    processes: int = 2  # data-parallel workers on a CPU, one thread each
    dtype: str = "bfloat16"  # of forward and backward; master weights are float32
    compile: str = "auto"  # torch.compile: "on", "off", or "auto", on a GPU alone
    trackers: tuple[str, ...] = ()  # accelerate's: "tensorboard", "wandb", "trackio" ...
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(lr=1.5e-3))

    def __post_init__(self) -> None:
        """Check choices and ranges."""
        _check_choice("memory", "head", self.head, ("decoder", "free", "tied"))
        _check_choice("memory", "keep", self.keep, ("last", "best"))
        _check_choice("memory", "dtype", self.dtype, ("bfloat16", "float32"))
        _check_choice("memory", "compile", self.compile, ("auto", "on", "off"))
        for name in ("alpha", "lmbda"):
            _check_range("memory", name, getattr(self, name), 0, 1)
        for name in ("blocks", "intermediate_size", "epochs", "batch", "processes"):
            _check_range("memory", name, getattr(self, name), 1)
        for name in ("micro_batch", "validation_rows", "noise"):
            _check_range("memory", name, getattr(self, name), 0)
        if self.keep == "best" and not self.validation_rows:
            raise MlpMemError(
                'memory: keep "best" needs validation_rows above 0: nothing else says what is best'
            )


@dataclass(frozen=True)
class Finetuned:
    """Which tuned decoders stand beside: (groups, learning rate, epochs), with LoRA also a rank."""

    settings: tuple[tuple[str, float, int], ...] = (
        ("B", 2e-4, 1),
        ("B", 4e-4, 2),
        ("B", 1e-3, 4),
        ("A1+B", 1e-3, 2),
    )
    lora: tuple[tuple[str, float, int, int], ...] = (
        ("B", 2e-3, 2, 16),
        ("A1+B", 5e-4, 3, 16),  # as many FLOPs as the memory's training
        ("A1+B", 1e-3, 3, 64),
    )
    questions: int = 1000  # at most, of a cell (group and wording)
    processes: int = 2  # settings trained at once on a CPU, one thread each


@dataclass(frozen=True)
class Controls:
    """Memories that differ from the recipe's in something, to see what that something does."""

    memories: tuple[dict, ...] = ()  # fields of [memory], each set that differs: {alpha = 0.0}
    questions: int = 1000  # at most, of a cell (group and wording)

    def __post_init__(self) -> None:
        """Raise MlpMemError for a field that no memory has."""
        for given in self.memories:
            fill(Memory, given, "[controls] memories")


@dataclass(frozen=True)
class Evaluate:
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
class Export:
    """What goes into the bundle besides weights and documents."""

    name: str = ""  # of the bundle; none: the recipe's
    examples: int = 24  # in four groups
    questions: int = 400  # in untrained wordings, half of them new to the decoder
    traces: int = 6  # recorded comparisons, descriptions among them
    abouts: int = 2  # descriptions


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
            _check_range("stated", name, value, 0)


@dataclass(frozen=True)
class Recipe:
    """All stages of one bundle."""

    name: str
    seed: int = 0
    corpus: Corpus = field(default_factory=Corpus)
    decoder: Decoder = field(default_factory=Decoder)
    datastore: Datastore = field(default_factory=Datastore)
    targets: Targets = field(default_factory=Targets)
    memory: Memory = field(default_factory=Memory)
    finetuned: Finetuned = field(default_factory=Finetuned)
    controls: Controls = field(default_factory=Controls)
    evaluate: Evaluate = field(default_factory=Evaluate)
    export: Export = field(default_factory=Export)
    stated: Stated = field(default_factory=Stated)


def load_recipe(name: str) -> Recipe:
    """Return the recipe of a file, or one of train/recipes by name; MlpMemError if it is wrong."""
    known = Path(__file__).parent / "recipes"
    path = Path(name) if Path(name).suffix == ".toml" else known / f"{name}.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = ", ".join(sorted(p.stem for p in known.glob("*.toml")))
        raise MlpMemError(f"no recipe {name!r}; use one of {names}, or a .toml file") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MlpMemError(f"recipe {path.name}: {error}") from error
    recipe = fill(Recipe, {"name": path.stem} | values, path.name)
    return _completed(recipe, path.resolve().parent)


def _completed(recipe: Recipe, base: Path) -> Recipe:
    """Return the recipe with paths made absolute, from its file's folder, and names filled in.

    A decoder that exists brings its tokenizer, and a bundle is named after the recipe, unless the
    recipe names another.
    """

    def at(source: str) -> str:
        return source if not source or source.startswith("hub:") else str((base / source).resolve())

    corpus, decoder = recipe.corpus, recipe.decoder
    sources = {n: tuple(map(at, getattr(corpus, n))) for n in ("train", "valid", "test")}
    corpus = replace(corpus, **sources, tokenizer=at(corpus.tokenizer or decoder.source))
    return replace(
        recipe,
        corpus=corpus,
        decoder=replace(decoder, source=at(decoder.source)),
        export=replace(recipe.export, name=recipe.export.name or recipe.name),
    )


def _one_of(table: str, key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise MlpMemError unless value is allowed."""
    if value not in allowed:
        raise MlpMemError(f"{table}: {key} is {value!r}, it must be one of {', '.join(allowed)}")


def fill(kind: type, values: dict, where: str) -> object:
    """Return a dataclass of `kind` filled from a table; MlpMemError for an unknown key or type.

    `where` is what the message calls the table.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = values.keys() - fields.keys()
    if unknown:
        raise MlpMemError(
            f"{where}: unknown {', '.join(sorted(unknown))}; allowed: {', '.join(fields)}"
        )
    return kind(**{key: _value(fields[key].type, key, values[key], where) for key in values})


def _value(kind: type, key: str, value: object, where: str) -> object:
    """Return one field's value as the dataclass holds it; MlpMemError if it is of another type."""
    allowed = kind.__name__
    if dataclasses.is_dataclass(kind):
        allowed = f"a table [{key}]"
        if isinstance(value, dict):
            return fill(kind, value, f"{where} [{key}]")
    elif get_origin(kind) is tuple:
        allowed = "a list"
        if isinstance(value, list):
            return tuple(tuple(v) if isinstance(v, list) else v for v in value)
    elif isinstance(value, bool) == (kind is bool):  # Python counts a bool among the numbers
        if isinstance(value, (int, float) if kind is float else kind):
            return value
    raise MlpMemError(f"{where}: {key} is {value!r}, it must be {allowed}")


def _check_choice(stage: str, name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise MlpMemError for a value that is not among those allowed."""
    if value not in allowed:
        raise MlpMemError(f"{stage}: {name} is {value!r}, it must be one of {', '.join(allowed)}")


def _check_range(
    stage: str, name: str, value: float, least: float, most: float = float("inf")
) -> None:
    """Raise MlpMemError for a number outside its range."""
    if not least <= value <= most:
        limit = f"{least} or more" if most == float("inf") else f"within {least} and {most}"
        raise MlpMemError(f"{stage}: {name} is {value}, it must be {limit}")
