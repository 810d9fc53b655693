"""One worker process for untrusted programs, with limits on time and memory.

A chat template and a tokenizer's rules are programs that come with a decoder. They may loop or
write without end. The process starts at the first request, answers one request at a time, and
restarts if it dies; it runs `confined_worker.py`.
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

START_SECONDS = 120.0  # until the process must be ready, on a busy machine
BUSY = 6  # seconds by the clock per second of the processor, at most
GRACE_SECONDS = 2.0  # more by the clock, for starting and writing


def run_confined(task: str, seconds: float, **values: Any) -> dict[str, Any]:
    """Return the result of a task, or {"error": reason}; it is killed after so many seconds.

    They are the processor's. By the clock it may take BUSY times as long, so that a busy machine
    refuses nothing.
    """
    answer = _WORKER.request({"task": task, "seconds": seconds, **values})
    if answer is None or "dead" in answer:
        return {"error": f"it takes over {seconds:g} s, or too much memory"}
    return answer


class _Worker:
    """The worker process, restarted if it dies."""

    def __init__(self) -> None:
        self._lock, self._process = threading.Lock(), None
        self._owner, self._pending = 0, b""

    def request(self, request: dict) -> dict | None:
        """Return the answer to a request, None if it took too long."""
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            for _ in range(2):  # the process may have died while idle
                self._start()
                try:
                    self._process.stdin.write(line)
                    self._process.stdin.flush()
                except OSError:
                    self._end()
                    continue
                answer = self._read(BUSY * request["seconds"] + GRACE_SECONDS)
                if answer is None:
                    self._end()
                return answer
        raise MlpMemError(
            "the process that renders chat templates cannot start; restart the program"
        )

    def close(self) -> None:
        """Kill the process; the next request starts another."""
        with self._lock:
            self._end()

    def _start(self) -> None:
        """Start the process unless it runs; a forked child does not use its parent's."""
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
        """Return the next answer, None after a timeout."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._pending:
            data = _read_some(self._process.stdout, deadline - time.monotonic())
            if not data:
                return None
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return json.loads(line)

    def _end(self) -> None:
        """Kill the process; its forks end when their pipes close or their time is up."""
        if self._process is None or self._owner != os.getpid():
            return
        self._process.kill()
        with suppress(OSError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._process = None


def _read_some(pipe: Any, seconds: float) -> bytes:
    """Return the data in a pipe, b"" if it is closed or empty for so many seconds."""
    if os.name == "posix":
        if seconds <= 0 or not select.select([pipe], [], [], seconds)[0]:
            return b""
        return os.read(pipe.fileno(), 2**16)
    data: list[bytes] = []  # Windows has no select for pipes
    reader = threading.Thread(target=lambda: data.append(os.read(pipe.fileno(), 2**16)))
    reader.daemon = True
    reader.start()
    reader.join(max(0.0, seconds))
    return data[0] if data else b""


_WORKER = _Worker()
atexit.register(_WORKER.close)
