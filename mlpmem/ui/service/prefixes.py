"""What the latest chats have read, so that a next question is read alone.

Only a page on people's own machines keeps it: in a Space nothing of a chat stays on the server.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mlpmem.errors import MlpMemError

if TYPE_CHECKING:  # it needs torch, which the first screen does not
    from mlpmem.engine.prefix import PrefixCache

VARIABLE = "MLPMEM_PREFIXES"
SESSIONS = 2


def sessions_of(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many readers' chats are kept: by MLPMEM_PREFIXES, else 2, and 0 in a Space."""
    setting = environment.get(VARIABLE, "").strip()
    if not setting:
        return 0 if environment.get("SPACE_ID") else SESSIONS
    if not setting.isdecimal() or len(setting) > 4:
        raise MlpMemError(
            f"{VARIABLE} must be a whole number of sessions, 0 for none; got {setting[:40]!r}. "
            f"Correct it, or unset it for {SESSIONS}."
        )
    return int(setting)


class Prefixes:
    """A PrefixCache per session of the page, or per client of the protocol: the latest ones."""

    def __init__(self, most: int | None = None) -> None:
        """Keep those of so many sessions."""
        self.most = sessions_of() if most is None else most
        self._of: OrderedDict[str, PrefixCache] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, session: str | None) -> "PrefixCache | None":
        """Return a session's, a new one for a new session; None if nothing is kept."""
        if not session or not self.most:
            return None
        from mlpmem.engine.prefix import PrefixCache

        with self._lock:
            prefix = self._of.setdefault(session, PrefixCache())
            self._of.move_to_end(session)
            while len(self._of) > self.most:
                self._of.popitem(last=False)
        return prefix
