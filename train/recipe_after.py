"""A recipe's tables for what comes once a memory is there: router, comparisons, measuring, export.

And sizes that are only stated, for an estimate.
"""

import dataclasses
from dataclasses import dataclass

from mlpmem.errors import MlpMemError
from train.config.checks import check_range


@dataclass(frozen=True)
class Router:
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
class Finetuned:
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
