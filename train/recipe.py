"""A recipe: every stage's configuration, as frozen dataclasses read from one TOML file."""

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_origin

from mlpmem.errors import MlpMemError


@dataclass(frozen=True)
class Corpus:
    """Where text comes from and how it is tokenised."""

    kind: str = "atlas"  # a module of train/corpora
    scale: float = 1.0  # share of the corpus's entities
    vocab_size: int = 4096
    draws: int = 9  # epochs of the decoder, each with its own choice of wordings


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
    """Shape and training of a decoder made from nothing (Llama family)."""

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
    """Which hidden state is the key."""

    depth: int = -1  # layer whose FFN input it is


@dataclass(frozen=True)
class Targets:
    """Which rows the memory learns from, and what the datastore answers there."""

    k: int = 128
    temperature: float = 20.0  # of the squared L2 distances
    nll_floor: float = 0.5  # every position the decoder finds harder than this (nats) is a row
    easy_share: float = 0.15  # share of the other positions that are rows too


@dataclass(frozen=True)
class Memory:
    """Shape and training of the memory."""

    blocks: int = 6
    intermediate_size: int = 1024
    epochs: int = 8
    batch: int = 1024  # rows a step
    alpha: float = 0.3  # weight of KL(knn || memory); the rest is cross-entropy
    noise: float = 0.1  # standard deviation of Gaussian noise on keys, in units of a key's own
    init_head: bool = True  # start from the decoder's output matrix
    processes: int = 2  # data-parallel workers on a CPU, one thread each
    dtype: str = "bfloat16"
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(lr=1.5e-3))


@dataclass(frozen=True)
class Finetuned:
    """Which fine-tuned decoders stand beside: (groups, learning rate, epochs)."""

    settings: tuple[tuple[str, float, int], ...] = (
        ("B", 2e-4, 1),
        ("B", 4e-4, 2),
        ("B", 1e-3, 4),
        ("A1+B", 1e-3, 2),
    )
    questions: int = 1000  # at most, of a cell (group and wording)
    processes: int = 2  # settings trained at once on a CPU, one thread each


@dataclass(frozen=True)
class Evaluate:
    """How much is asked, and how the datastore is used."""

    questions: int = 1000  # at most, of a cell (group and wording)
    k: int = 128
    temperature: float = 20.0


@dataclass(frozen=True)
class Export:
    """What goes into the bundle besides weights and documents."""

    name: str = "atlas"
    examples: int = 24  # in four groups
    questions: int = 400  # in untrained wordings, half of them new to the decoder
    traces: int = 6  # recorded comparisons, descriptions among them
    abouts: int = 2  # descriptions


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
    evaluate: Evaluate = field(default_factory=Evaluate)
    export: Export = field(default_factory=Export)


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
    return fill(Recipe, {"name": path.stem} | values, path.name)


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
