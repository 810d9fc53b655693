"""How long a run may take, and that nothing is fetched for whoever asks for it."""

import threading
import time
from typing import Any

from gradio import processing_utils

from mlpmem.errors import MlpMemError
from mlpmem.ui.door.bounds import BOUNDS

SECONDS = BOUNDS.run_seconds  # of one run; three columns of 128 tokens need a few
LATE = (
    f"That took longer than {SECONDS:.0f} seconds, so it was stopped to let others go on. "
    "Ask for fewer tokens or a shorter text."
)


class Deadline(threading.Event):
    """What a run is asked to stop by: set by whoever leaves, and of itself when time is over."""

    def __init__(self, seconds: float = SECONDS) -> None:
        """Begin now."""
        super().__init__()
        self._ends = time.monotonic() + seconds

    @property
    def over(self) -> bool:
        """Return whether the time is over."""
        return time.monotonic() > self._ends

    def is_set(self) -> bool:
        """Return whether to stop."""
        return super().is_set() or self.over

    def check(self) -> None:
        """Raise MlpMemError where the time is over."""
        if self.over:
            raise MlpMemError(LATE)


def refuse_addresses() -> None:
    """Have Gradio fetch no address that a request names in place of a file.

    It would for every component, whole and without a bound, before anything here is asked; no panel
    takes an address.
    """

    async def refused(*_: Any, **__: Any) -> str:
        raise ValueError("a request named an address in place of a file; files are uploaded")

    processing_utils.async_ssrf_protected_download = refused
