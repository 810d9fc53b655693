"""Compiled code is cached by a hash of every source file that it may contain."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mlpmem.fast import compiling

pytest.importorskip("numba")
ROOT = Path(__file__).parents[2]
CALL = "import numpy as np; from mlpmem.fast.kernels import attend; "
CALL += "x = np.zeros((1, 8), np.float32); attend.soften(x[0], np.float32(1)); "
CALL += "print(float(x[0, 0]), len(attend.soften.stats.cache_hits))"


def test_a_change_of_any_file_changes_the_cache(tmp_path):
    from mlpmem.fast.kernels import version_of

    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text(name)
    before = version_of(tmp_path)
    assert before == version_of(tmp_path)
    (tmp_path / "two.py").write_text("another")
    assert before != (changed := version_of(tmp_path))
    (tmp_path / "two.py").rename(tmp_path / "three.py")
    assert changed != version_of(tmp_path)


@pytest.mark.slow
def test_a_function_is_compiled_again_if_one_it_calls_in_another_file_changes(tmp_path):
    shutil.copytree(
        ROOT / "mlpmem", tmp_path / "mlpmem", ignore=shutil.ignore_patterns("__pycache__", "ui")
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    environment["NUMBA_CACHE_DIR"] = str(tmp_path / "cache")

    def call() -> list[str]:
        command = [sys.executable, "-c", CALL]
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
        )
        assert ended.returncode == 0, ended.stderr
        value, hits = ended.stdout.split()
        return [value, "kept" if int(hits) else "compiled"]

    assert [call(), call()] == [["1.0", "compiled"], ["1.0", "kept"]]
    layer = tmp_path / "mlpmem/fast/kernels/layer.py"
    text = layer.read_text()
    assert text.count("return (p * r * r + r + ONE)") == 1
    layer.write_text(text.replace("return (p * r * r + r + ONE)", "return np.float32(2) * (ONE)"))
    assert call() == ["2.0", "compiled"]


@pytest.mark.slow
def test_a_process_of_its_own_compiles_what_later_ones_read(tmp_path):
    script = "from mlpmem.fast import compiling as c; print(c.is_cached('float32')); "
    script += "c.compile_apart('float32'); print(c.is_cached('float32'), c.is_cached('bfloat16'))"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path)}
    lines = []
    for _ in range(2):
        command = [sys.executable, "-c", script]
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400
        )
        assert ended.returncode == 0, ended.stderr
        lines.append(ended.stdout.splitlines())
    assert lines == [["False", "True False"], ["True", "True False"]]


def test_processes_that_start_together_compile_once(tmp_path, monkeypatch):
    place, made = tmp_path / "all-it", []
    monkeypatch.setattr("mlpmem.fast.kernels.note", lambda dtype: place)
    monkeypatch.setattr(compiling, "POLL", 0.01)

    def compile_slowly(dtype):
        made.append(dtype)
        time.sleep(0.2)
        place.touch()

    monkeypatch.setattr(compiling, "_compile", compile_slowly)
    threads = [threading.Thread(target=compiling.compile_apart, args=("it",)) for _ in range(3)]
    for thread in threads:  # a lock object belongs to a call, so threads wait as processes do
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["it"]


HOLDER = """
import sys, time
from pathlib import Path
from mlpmem.fast.compiling import _turn
with _turn(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_compiler_keeps_nobody_waiting(tmp_path, monkeypatch):
    place, made = tmp_path / "all-it", []
    monkeypatch.setattr("mlpmem.fast.kernels.note", lambda dtype: place)
    monkeypatch.setattr(compiling, "_compile", made.append)
    command, environment = [sys.executable, "-c", HOLDER, str(place)], {"PYTHONPATH": str(ROOT)}
    options = {"stdout": subprocess.PIPE, "text": True, "env": os.environ | environment}
    with subprocess.Popen(command, **options) as holder:
        assert holder.stdout.readline() == "held\n"
        thread = threading.Thread(target=compiling.compile_apart, args=("it",))
        thread.start()
        time.sleep(0.3)
        assert made == []
        holder.kill()
        thread.join(20)
    assert made == ["it"]


def test_without_locks_everybody_compiles(tmp_path, monkeypatch):
    place, made = tmp_path / "all-it", []
    monkeypatch.setattr("mlpmem.fast.kernels.note", lambda dtype: place)
    monkeypatch.setattr(compiling, "_compile", made.append)

    def acquire(lock, timeout):
        raise NotImplementedError("no locks on this file system")

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    compiling.compile_apart("it")
    assert made == ["it"]


def test_an_unknown_dtype_is_not_compiled(capsys):
    from mlpmem.fast.__main__ import main

    with pytest.raises(SystemExit):
        main(["int3"])
    assert "choose from" in capsys.readouterr().err
