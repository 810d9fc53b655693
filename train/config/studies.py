"""How much the studies of a recipe look at and train: its [studies] table."""

from dataclasses import dataclass

from mlpmem.errors import MlpMemError
from train.config.checks import check_range


@dataclass(frozen=True)
class StudiesConfig:
    """Sizes of what is sampled and trained, alike for everything that is compared."""

    positions: int = 4000  # held-out tokens looked at, at most
    questions: int = 100  # at most, of a cell (group and wording)
    examples: int = 40  # worst tokens that are kept to read
    # update
    facts: int = 200  # new ones, at least
    passes: int = 4  # over the new documents, for memory and decoder alike
    replay: float = 1.0  # old rows (memory) or tokens (decoder) beside each new one
    update_batch: int = 512  # rows (memory) or tokens (decoder) a step
    # compute: (groups, learning rate, epochs, rank) of tuned decoders, rank 0 for all weights
    tuned: tuple[tuple[str, float, int, int], ...] = ()
    # sensitivity
    epochs: int = 2  # of every memory that is trained anew
    depths: tuple[int, ...] = (-2, -3)  # each needs keys and targets of its own
    targets: tuple[tuple[int, float], ...] = ()  # (k, temperature), which need targets of their own
    # sizes: (hidden size, layers) of decoders, trained so many times over the text
    decoders: tuple[tuple[int, int], ...] = ()
    decoder_epochs: int = 1
    # mixing
    ks: tuple[int, ...] = (1, 8, 32, 128, 512)
    temperatures: tuple[float, ...] = (1.0, 5.0, 10.0, 20.0, 40.0)
    # domains: (name, file, heading, separator) as [corpus] has them
    domains: tuple[tuple[str, str, str, str], ...] = ()
    domain_characters: int = 400_000  # of each file, from its beginning
    domain_shares: tuple[float, float] = (0.1, 0.1)  # of its documents, to choose on and to test
    domain_rows: float = 0.5  # share of a domain's positions that its memory learns from
    domain_epochs: int = 6

    def __post_init__(self) -> None:
        """Raise MlpMemError for values outside what is allowed."""
        for name in ("positions", "questions", "facts", "passes", "update_batch", "epochs",
                     "decoder_epochs", "domain_characters", "domain_epochs"):  # fmt: skip
            check_range("studies", name, getattr(self, name), 1)
        check_range("studies", "replay", self.replay, 0)
        check_range("studies", "domain_rows", self.domain_rows, 0, 1)
        if not all(map(_is_shape, self.decoders)) or len(set(self.decoders)) < len(self.decoders):
            raise MlpMemError(
                f"studies: decoders is {self.decoders}; each must be two whole numbers, hidden "
                "size (a multiple of 32, or even and below 64) and layers, and none twice"
            )
        if not all(map(_is_target, self.targets)):
            raise MlpMemError(
                f"studies: targets is {self.targets}; each must be neighbours, a whole number, and "
                "a temperature, both above 0"
            )
        if not all(map(_is_setting, self.tuned)):
            raise MlpMemError(
                f"studies: tuned is {self.tuned}; each must be groups (a text), learning rate, "
                "epochs and rank, 0 for all weights"
            )
        named = {domain[0] for domain in self.domains if len(domain) == 4}
        if len(named) < len(self.domains):
            raise MlpMemError(
                f"studies: domains is {self.domains}; each must be four texts: a name of its own, "
                "file, heading and separator, of which the last two may be empty"
            )


def _is_shape(shape: tuple) -> bool:
    """Return whether a decoder can have this hidden size, in heads of 32 or one, and layers."""
    if (
        type(shape) is not tuple
        or len(shape) != 2
        or not all(type(size) is int and size > 0 for size in shape)
    ):
        return False
    return shape[0] % 32 == 0 or (shape[0] < 64 and shape[0] % 2 == 0)


def _is_setting(setting: tuple) -> bool:
    """Return whether a decoder can be tuned so: (groups, learning rate, epochs, rank)."""
    if type(setting) is not tuple or len(setting) != 4:
        return False
    groups, lr, epochs, rank = setting
    whole = type(epochs) is int and epochs > 0 and type(rank) is int and rank >= 0
    return isinstance(groups, str) and isinstance(lr, float) and lr > 0 and whole


def _is_target(pair: tuple) -> bool:
    """Return whether targets can be made so: (k, temperature)."""
    if type(pair) is not tuple or len(pair) != 2:
        return False
    k, temperature = pair
    return type(k) is int and k > 0 and isinstance(temperature, float) and temperature > 0
