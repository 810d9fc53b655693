"""A signal ends the process with its own status, whatever other threads compute."""

import os
import signal
import subprocess
import sys

import pytest

SCRIPT = """
import atexit, os, signal, sys, threading, time
import torch
from mlpmem.ui.door import ending

ending.exit_on_signals()
atexit.register(print, "cleaned up")
running = threading.Event()

def compute():
    x = torch.ones(256, 256)
    while True:
        x = x @ x
        running.set()

threading.Thread(target=compute, daemon=True).start()
running.wait()
try:
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    time.sleep(60)
finally:
    print("left")
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 0)])
def test_a_thread_in_c_does_not_abort_a_process_that_a_signal_ends(name, code):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)  # a job in the background ignores SIGINT
    try:
        command = [sys.executable, "-c", SCRIPT, name]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    finally:
        signal.signal(number, before)
    assert (ended.returncode, ended.stderr) == (code, "")
    assert ended.stdout.split("\n") == ["left", "cleaned up", ""]
