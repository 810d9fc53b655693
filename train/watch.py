"""Looks at every step's figures, one step late: a device is given its next work before it is asked.

Stops a run whose loss is no number, or far above what it was, and says where.
"""

import math
from collections import deque
from statistics import median

from torch import Tensor

from mlpmem.errors import MlpMemError

WINDOW = 64  # losses whose median is the usual loss
SPIKE, PATIENCE = 2.0, 8  # so many usual losses, plus 1 nat, for so many steps running


class Watch:
    """The figures of the last step that was looked at, and the losses before it."""

    def __init__(self, usual: list[float]) -> None:
        """Begin with the losses that an earlier run kept in `usual`."""
        self.figures: dict[str, float] = {}
        self.rows = 0.0  # since it was last set to 0
        self.high = 0  # steps running whose loss was far too large
        self.usual = deque(usual, WINDOW)
        self._waiting: tuple[int, Tensor, list[str]] | None = None

    def add(self, step: int, counts: Tensor, names: list[str]) -> None:
        """Take a step's counts (rows, sums by names, ..., norm) and look at the step before.

        Raises MlpMemError as `look` does.
        """
        self.look()
        self._waiting = step, counts, names

    def look(self) -> dict[str, float]:
        """Return means over rows by name, and the norm, of the last step taken.

        MlpMemError if they are no numbers, or the loss was far too large for PATIENCE steps.
        """
        if self._waiting is None:
            return self.figures
        (step, counts, names), self._waiting = self._waiting, None
        rows, *sums, norm = counts.tolist()
        self.rows += rows
        means = [s / max(rows, 1.0) for s in sums]
        self.figures = dict(zip(names, means, strict=False)) | {"norm": norm}
        if not all(map(math.isfinite, self.figures.values())):
            raise MlpMemError(
                f"step {step + 1}: the loss is no number ({self.figures}); lower the learning rate "
                "or check the rows there. The last checkpoint is sound"
            )
        self._check_spike(step, self.figures["loss"])
        return self.figures

    def _check_spike(self, step: int, loss: float) -> None:
        """Raise MlpMemError at the last of PATIENCE losses that are far above the median."""
        usual = median(self.usual) if len(self.usual) == WINDOW else math.inf
        self.high = self.high + 1 if loss > SPIKE * usual + 1.0 else 0
        if not self.high:
            self.usual.append(loss)
        if self.high == PATIENCE:
            raise MlpMemError(
                f"step {step + 1}: the loss is {loss:.3f}, for {PATIENCE} steps now far above the "
                f"{usual:.3f} it was; lower the learning rate, or check the rows from step "
                f"{step + 2 - PATIENCE} on. The last checkpoint is from before that"
            )
