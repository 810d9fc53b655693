"""How the process ends: by Ctrl-C, SIGTERM or SIGHUP alike, with nothing of it left behind.

The signal is raised as an exit in the main thread, wherever that is, so that every `finally` and
everything registered at exit has its turn.
"""

import os
import signal
import sys
import threading
from types import FrameType

CODES = {"SIGINT": 0, "SIGTERM": 143, "SIGHUP": 129}
PATIENCE = 8.0  # seconds; a container's host kills what takes ten


def exit_on_signals() -> None:
    """Have signals exit this process, in the main thread; one that is ignored stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        return
    for name in CODES:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    """Exit, once; whatever still computes after PATIENCE is not waited for."""
    for name in CODES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    code = CODES[signal.Signals(number).name]
    last = threading.Timer(PATIENCE, os._exit, [code])
    last.daemon = True
    last.start()
    sys.exit(code)


def end_training() -> None:
    """End the training of a memory where one runs, and wait for it; what it made is kept."""
    distil = sys.modules.get("mlpmem.loading.distil")
    if distil is not None:
        distil.end()
