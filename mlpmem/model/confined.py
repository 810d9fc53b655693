"""One worker process for untrusted programs, with limits of time and memory.

A chat template and a tokenizer's rules are programs that come with a decoder. They may loop or
write without end. The process starts at the first request, answers one request at a time, and
starts again if it dies; it runs `confined_worker.py`.
"""

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlpmem.errors import MlpMemError

START_SECONDS = 120.0  # that the process may take until it is ready, on a busy machine
GRACE_SECONDS = 2.0  # beyond a request's own, after which the process itself is given up


def ask(task: str, seconds: float, **values: Any) -> dict[str, Any]:
    """Return the answer to a task: its result, or {"error"} with a line that says why not.

    A task that takes more than its seconds is ended.
    """
    answer = _WORKER.ask({"task": task, "seconds": seconds, **values})
    if answer is None or "dead" in answer:
        return {"error": f"it takes over {seconds:g} s, or too much memory"}
    return answer


class _Worker:
    """The process, started again where it was lost."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._lock, self._process = threading.Lock(), None
        self._owner, self._pending = 0, b""

    def ask(self, request: dict) -> dict | None:
        """Return the answer to a request, None where it was not done in time."""
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            for _ in range(2):  # a process that died while idle is no answer
                self._start()
                try:
                    self._process.stdin.write(line)
                    self._process.stdin.flush()
                except OSError:
                    self._end()
                    continue
                answer = self._read(request["seconds"] + GRACE_SECONDS)
                if answer is None:
                    self._end()
                return answer
        raise MlpMemError(
            "the process that renders chat templates cannot be started; start the program again"
        )

    def close(self) -> None:
        """End the process; the next request starts another."""
        with self._lock:
            self._end()

    def _start(self) -> None:
        """Start the process unless it runs; one of a parent of this process is not used."""
        if self._process is not None and self._owner != os.getpid():
            self._process = None
        if self._process is not None and self._process.poll() is None:
            return
        self._end()
        worker = Path(__file__).with_name("confined_worker.py")
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
        self._owner, self._pending = os.getpid(), b""
        self._read(START_SECONDS)

    def _read(self, seconds: float) -> dict | None:
        """Return the next answer, None where there is none in time."""
        until = time.monotonic() + seconds
        while b"\n" not in self._pending:
            some = _some(self._process.stdout, until - time.monotonic())
            if not some:
                return None
            self._pending += some
        line, _, self._pending = self._pending.partition(b"\n")
        return json.loads(line)

    def _end(self) -> None:
        """Kill the process; a fork of it ends with its pipes, or with its request's time."""
        if self._process is None or self._owner != os.getpid():
            return
        self._process.kill()
        with suppress(OSError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._process = None


def _some(pipe: Any, seconds: float) -> bytes:
    """Return what a pipe has, b"" where it is closed or has nothing in so many seconds."""
    if os.name == "posix":
        if seconds <= 0 or not select.select([pipe], [], [], seconds)[0]:
            return b""
        return os.read(pipe.fileno(), 2**16)
    found: list[bytes] = []  # there is no select for pipes
    reader = threading.Thread(target=lambda: found.append(os.read(pipe.fileno(), 2**16)))
    reader.daemon = True
    reader.start()
    reader.join(max(0.0, seconds))
    return found[0] if found else b""


_WORKER = _Worker()
atexit.register(_WORKER.close)
