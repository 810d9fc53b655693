"""Clean exit on Ctrl-C, SIGTERM and SIGHUP.

A signal raises SystemExit in the main thread, so every `finally` and `atexit` handler runs.
"""

import os
import signal
import sys
import threading
from types import FrameType

CODES = {"SIGINT": 0, "SIGTERM": 143, "SIGHUP": 129}
PATIENCE = 8.0  # seconds; container hosts kill after ten


def exit_on_signals() -> None:
    """Install the signal handlers, in the main thread only; an ignored signal stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        return
    for name in CODES:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    """Exit; after PATIENCE seconds the process is ended without waiting for other threads."""
    for name in CODES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    code = CODES[signal.Signals(number).name]
    last = threading.Timer(PATIENCE, os._exit, [code])
    last.daemon = True
    last.start()
    sys.exit(code)


def end_training() -> None:
    """Stop a running memory training and wait for it; its progress is kept."""
    distil = sys.modules.get("mlpmem.loading.distil")
    if distil is not None:
        distil.end()
