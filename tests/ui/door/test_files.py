"""The process's temporary folder, and the uploads in it: limits per client, and the sweep."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlpmem.errors import MlpMemError
from mlpmem.ui.door import files
from mlpmem.ui.door.bounds import Bounds

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "mlpmem-x"


def stored(folder: Path, name: str, size: int = 1) -> Path:
    """Return a file as Gradio stores an upload: in a folder named after its content."""
    path = folder / f"hash-{name}" / f"{name}.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * size)
    return path


def uploads(folder: Path, clock=lambda: 0.0, **bounds) -> files.Uploads:
    return files.Uploads(folder, Bounds(**bounds), clock)


def test_a_client_above_its_share_loses_its_oldest_file(folder):
    table = uploads(folder, client_uploads=2)
    theirs = stored(folder, "theirs")
    table.add("b", theirs)
    own = [stored(folder, str(i)) for i in range(4)]
    for path in own:
        table.add("a", path)
    assert [path.exists() for path in (theirs, *own)] == [True, False, False, True, True]
    assert not own[0].parent.exists()


def test_a_share_also_limits_bytes_and_a_small_file_counts_a_minimum(folder):
    table = uploads(folder, client_upload_bytes=200_000)
    own = [stored(folder, str(i), size) for i, size in enumerate((1, 1, 100_000))]
    for path in own:
        table.add("a", path)
    assert [path.exists() for path in own] == [False, True, True]
    assert table.size == files.LEAST + 100_000


def test_above_the_total_limit_the_client_with_most_bytes_loses_a_file(folder):
    table = uploads(folder, upload_bytes=4 * files.LEAST, client_uploads=9)
    theirs = stored(folder, "theirs")
    table.add("b", theirs)
    own = [stored(folder, str(i)) for i in range(3)]
    for path in own:
        table.add("a", path)
    new = stored(folder, "new")
    table.add("c", new)
    assert theirs.exists() and new.exists() and not own[0].exists()


def test_a_file_of_two_clients_is_deleted_when_both_lost_it(folder):
    table = uploads(folder, client_uploads=1)
    shared = stored(folder, "shared")
    table.add("a", shared)
    table.add("b", shared)
    table.add("a", stored(folder, "1"))
    assert shared.exists()
    table.add("b", stored(folder, "2"))
    assert not shared.exists()


def test_a_file_outside_the_folder_is_ignored(folder, tmp_path):
    table = uploads(folder)
    (tmp_path / "other").write_text("x")
    table.add("a", tmp_path / "other")
    assert not table.files and (tmp_path / "other").exists()


def aged(path: Path, seconds: float) -> Path:
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


def test_the_sweep_deletes_incomplete_files_after_a_minute_and_unread_ones_after_ten(folder):
    now = [0.0]
    table = uploads(folder, clock=lambda: now[0])
    whole = stored(folder, "whole")
    table.add("a", whole)
    (folder / str(os.getpid())).touch()
    fresh, half = folder / "tmpfresh", aged_file(folder / "tmphalf", 61)
    fresh.touch()
    stray = aged(stored(folder, "stray"), 601)
    empty = folder / "hash-empty"
    empty.mkdir()
    aged(empty, 61)
    aged(folder / str(os.getpid()), 10_000)
    names = {str(whole), str(half), "/gone"}
    table.sweep([names])
    assert not half.exists() and not stray.exists() and not empty.exists()
    assert fresh.exists() and whole.exists() and names == {str(whole)}
    assert (folder / str(os.getpid())).exists()
    now[0] = 601.0
    table.sweep()
    assert not whole.exists() and not table.files


def aged_file(path: Path, seconds: float) -> Path:
    path.write_bytes(b"half")
    return aged(path, seconds)


CLAIM = (
    "import sys\nfrom mlpmem.ui.door import files\nprint(files.claim(), 'gradio' in sys.modules)"
)


def claim(**environment: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, "-c", CLAIM]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_process_claims_a_folder_before_gradio_is_imported_and_deletes_it(tmp_path):
    left = tmp_path / "mlpmem-dead"
    left.mkdir()
    (left / "4711").touch()
    aged(left, 4000)
    (tmp_path / "mlpmem-notours").mkdir()
    aged(tmp_path / "mlpmem-notours", 4000)
    process = claim(GRADIO_TEMP_DIR=str(tmp_path))
    folder, gradio = process.stdout.split()
    assert Path(folder).parent == tmp_path and gradio == "False"
    assert [path.name for path in tmp_path.iterdir()] == ["mlpmem-notours"]


def test_a_file_named_gradio_is_harmless_and_a_missing_folder_raises_an_error(tmp_path):
    (tmp_path / "gradio").write_text("somebody else's")
    assert claim(TMPDIR=str(tmp_path), GRADIO_TEMP_DIR="").returncode == 0
    stderr = claim(GRADIO_TEMP_DIR=str(tmp_path / "gradio")).stderr
    assert "cannot create a folder for uploads" in stderr
    assert MlpMemError.__name__ in stderr
