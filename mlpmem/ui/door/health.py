"""`/health` for the host: state and counts, with nothing about a visitor."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from mlpmem.ui.door.bounds import Bounds

KEPT = 1.0  # seconds that an answer is cached


class Health:
    """Reports the state of model, queue, sessions, memory and disk."""

    def __init__(
        self, service: Any, folder: Path, bounds: Bounds,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Report on a service and the folder of uploads."""
        self._service, self._folder, self._bounds, self._clock = service, folder, bounds, clock
        self._process = psutil.Process()
        self._last: tuple[float, int, bytes] | None = None

    def answer(self, queue: Any, sessions: Any, uploads: Any) -> tuple[int, bytes]:
        """Return (status, JSON): 200, or 503 if the model could not be loaded."""
        now = self._clock()
        if self._last is None or now - self._last[0] > KEPT:
            self._last = (now, *self._measured(queue, sessions, uploads))
        return self._last[1:]

    def _measured(self, queue: Any, sessions: Any, uploads: Any) -> tuple[int, bytes]:
        status, bounds = self._service.status, self._bounds
        failed = status.state == "error" and not status.ready
        report = {
            "status": "failed" if failed else "ok",
            "model": {"state": status.state, "ready": status.ready, "complete": status.settled},
            "queue": {"waiting": len(queue.waiting()), "running": len(queue.running()),
                      "most": bounds.queue},
            "sessions": {"kept": len(sessions.visits), "most": bounds.all_sessions},
            "memory": {"bytes": self._process.memory_info().rss,
                       "available_bytes": psutil.virtual_memory().available},
            "disk": {"uploads": len(uploads.files), "upload_bytes": uploads.size,
                     "most_bytes": bounds.upload_bytes,
                     "free_bytes": shutil.disk_usage(self._folder).free},
        }  # fmt: skip
        return (503 if failed else 200), json.dumps(report).encode()
