"""A stage's lock: one run at a time, the holder is named, a dead process's lock is free."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlpmem.errors import MlpMemError
from train.files import read_json
from train.run.processes import lock_stage

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from train.run.processes import lock_stage
with lock_stage(Path(sys.argv[1]), "memory"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Return a process that holds the lock of stage memory."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_locked_stage_names_the_holder_and_the_option(tmp_path, holder):
    note = read_json(tmp_path / ".locks/memory.json")
    with pytest.raises(MlpMemError) as caught, lock_stage(tmp_path, "memory"):
        pass
    text = str(caught.value)
    assert f"process {holder.pid} on {note['host']} since {note['since']}" in text
    assert "--runs" in text
    with lock_stage(tmp_path, "decoder"):  # another stage is not locked
        pass


def test_the_lock_of_a_killed_process_is_taken_over_with_a_message(tmp_path, holder, capsys):
    holder.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    holder.wait()
    with lock_stage(tmp_path, "memory"):
        assert read_json(tmp_path / ".locks/memory.json")["pid"] == os.getpid()
    assert f"taken over from a killed run (process {holder.pid}" in capsys.readouterr().out


def test_a_run_that_fails_releases_its_lock_and_deletes_its_note(tmp_path, capsys):
    with pytest.raises(KeyError), lock_stage(tmp_path, "memory"):
        raise KeyError
    with lock_stage(tmp_path, "memory"):
        pass
    assert capsys.readouterr().out == ""
