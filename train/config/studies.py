"""A recipe's [studies] table: how much the studies sample and train."""

from dataclasses import dataclass

from mlpmem.errors import MlpMemError
from train.config.checks import check_range


@dataclass(frozen=True)
class StudiesConfig:
    """Sizes of samples and trainings, the same for everything that is compared."""

    positions: int = 4000  # held-out tokens, at most
    questions: int = 100  # at most per cell (group and wording)
    examples: int = 40  # worst tokens, listed for reading
    # update
    facts: int = 200  # new facts, at least
    passes: int = 4  # over the new documents, for memory and decoder
    replay: float = 1.0  # old rows (memory) or tokens (decoder) per new one
    update_batch: int = 512  # rows (memory) or tokens (decoder) per step
    # compute: (groups, learning rate, epochs, LoRA rank) of tuned decoders; rank 0: all weights
    tuned: tuple[tuple[str, float, int, int], ...] = ()
    # sensitivity
    epochs: int = 2  # of every memory that is trained again
    depths: tuple[int, ...] = (-2, -3)  # each needs its own keys and targets
    targets: tuple[tuple[int, float], ...] = ()  # (k, temperature), each with its own targets
    # sizes: (hidden size, layers) of decoders, and their passes over the text
    decoders: tuple[tuple[int, int], ...] = ()
    decoder_epochs: int = 1
    # mixing: neighbours, and temperatures of squared L2
    ks: tuple[int, ...] = (1, 8, 32, 128, 512)
    temperatures: tuple[float, ...] = (1.0, 5.0, 10.0, 20.0, 40.0)
    # domains: (name, file, heading, separator); the last two as in [corpus]
    domains: tuple[tuple[str, str, str, str], ...] = ()
    domain_characters: int = 400_000  # read of each file
    domain_shares: tuple[float, float] = (0.1, 0.1)  # of its documents, for validation and test
    domain_rows: float = 0.5  # share of a domain's positions that its memory learns from
    domain_epochs: int = 6

    def __post_init__(self) -> None:
        """Check ranges and the shapes of lists."""
        for name in ("positions", "questions", "facts", "passes", "update_batch", "epochs",
                     "decoder_epochs", "domain_characters", "domain_epochs"):  # fmt: skip
            check_range("studies", name, getattr(self, name), 1)
        check_range("studies", "replay", self.replay, 0)
        check_range("studies", "domain_rows", self.domain_rows, 0, 1)
        if not all(map(_is_shape, self.decoders)) or len(set(self.decoders)) < len(self.decoders):
            raise MlpMemError(
                "studies: decoders must be distinct pairs of whole numbers, hidden size (a "
                f"multiple of 32, or even and below 64) and layers; got {self.decoders}"
            )
        if not all(map(_is_target, self.targets)):
            raise MlpMemError(
                "studies: targets must be pairs of k (a whole number) and temperature, both above "
                f"0; got {self.targets}"
            )
        if not all(map(_is_setting, self.tuned)):
            raise MlpMemError(
                "studies: tuned must be lists of groups (a text), learning rate, epochs and rank "
                f"(0 for all weights); got {self.tuned}"
            )
        names = {domain[0] for domain in self.domains if len(domain) == 4}
        if len(names) < len(self.domains):
            raise MlpMemError(
                "studies: domains must be lists of four texts: a distinct name, a file, a heading "
                f"and a separator (the last two may be empty); got {self.domains}"
            )


def _is_shape(shape: tuple) -> bool:
    """Return whether this is (hidden size, layers); heads are of 32, or one small head."""
    if (
        type(shape) is not tuple
        or len(shape) != 2
        or not all(type(size) is int and size > 0 for size in shape)
    ):
        return False
    return shape[0] % 32 == 0 or (shape[0] < 64 and shape[0] % 2 == 0)


def _is_setting(setting: tuple) -> bool:
    """Return whether this is (groups, learning rate, epochs, rank)."""
    if type(setting) is not tuple or len(setting) != 4:
        return False
    groups, lr, epochs, rank = setting
    whole = type(epochs) is int and epochs > 0 and type(rank) is int and rank >= 0
    return isinstance(groups, str) and isinstance(lr, float) and lr > 0 and whole


def _is_target(pair: tuple) -> bool:
    """Return whether this is (k, temperature)."""
    if type(pair) is not tuple or len(pair) != 2:
        return False
    k, temperature = pair
    return type(k) is int and k > 0 and isinstance(temperature, float) and temperature > 0
