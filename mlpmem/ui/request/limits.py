"""The deadline of a run, and the block on URLs in place of uploaded files."""

import threading
import time
from typing import Any

from gradio import processing_utils

from mlpmem.errors import MlpMemError
from mlpmem.ui.door.bounds import BOUNDS

SECONDS = BOUNDS.run_seconds  # per run; three columns of 128 tokens need a few
LATE = (
    f"The run took longer than {SECONDS:.0f} seconds and was stopped. "
    "Ask for fewer tokens or a shorter text."
)


class Deadline(threading.Event):
    """A stop event that is also set once its seconds have passed."""

    def __init__(self, seconds: float = SECONDS) -> None:
        """Start the clock."""
        super().__init__()
        self._ends = time.monotonic() + seconds

    @property
    def over(self) -> bool:
        """Return whether the seconds have passed."""
        return time.monotonic() > self._ends

    def is_set(self) -> bool:
        """Return whether the run must stop."""
        return super().is_set() or self.over

    def check(self) -> None:
        """Raise MlpMemError once the seconds have passed."""
        if self.over:
            raise MlpMemError(LATE)


def refuse_addresses() -> None:
    """Block Gradio's download of a URL that a request gives in place of a file.

    Gradio would download it for any component, without a size limit; no panel needs a URL.
    """

    async def refused(*_: Any, **__: Any) -> str:
        raise ValueError("a request gave a URL in place of a file; upload the file")

    processing_utils.async_ssrf_protected_download = refused
