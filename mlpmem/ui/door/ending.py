"""Clean exit on Ctrl-C, SIGTERM and SIGHUP.

A signal raises SystemExit in the main thread, so every `finally` and `atexit` handler runs. Then
the process ends at once, without Python's own cleaning up: that ends other threads where they next
wait for Python's lock, and one in C++, such as the thread that loads a model, would abort the
process ("terminate called without an active exception").
"""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

CODES = {"SIGINT": 0, "SIGTERM": 143, "SIGHUP": 129}
PATIENCE = 8.0  # seconds; container hosts kill after ten
_code: int | None = None  # of the signal that ends this process


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
    global _code
    _code = CODES[signal.Signals(number).name]
    last = threading.Timer(PATIENCE, os._exit, [_code])
    last.daemon = True
    last.start()
    sys.exit(_code)


def _leave() -> None:
    """End a process that a signal ends, after all other `atexit` handlers."""
    if _code is None:
        return
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # there is none, or nobody reads it
            pass
    os._exit(_code)


atexit.register(_leave)  # handlers run in reverse order: what was registered earlier never runs


def at_end(action: Callable[..., object], *arguments: object) -> None:
    """Call action(*arguments) when the process ends, also by a signal."""
    atexit.register(action, *arguments)


def end_training() -> None:
    """Stop a running memory training and wait for it; its progress is kept."""
    distil = sys.modules.get("mlpmem.loading.distil")
    if distil is not None:
        distil.end()
