"""One folder of this process; uploads by client; what is half, old or read goes."""

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


def brought(folder: Path, name: str, size: int = 1) -> Path:
    """Return a file as Gradio stores an upload: in a folder named after its content."""
    path = folder / f"hash-{name}" / f"{name}.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * size)
    return path


def uploads(folder: Path, clock=lambda: 0.0, **bounds) -> files.Uploads:
    return files.Uploads(folder, Bounds(**bounds), clock)


def test_a_client_beyond_its_share_loses_its_oldest_file(folder):
    kept = uploads(folder, client_uploads=2)
    theirs = brought(folder, "theirs")
    kept.add("b", theirs)
    own = [brought(folder, str(i)) for i in range(4)]
    for path in own:
        kept.add("a", path)
    assert [path.exists() for path in (theirs, *own)] == [True, False, False, True, True]
    assert not own[0].parent.exists()


def test_a_share_is_bytes_too_and_a_small_file_counts(folder):
    kept = uploads(folder, client_upload_bytes=200_000)
    own = [brought(folder, str(i), size) for i, size in enumerate((1, 1, 100_000))]
    for path in own:
        kept.add("a", path)
    assert [path.exists() for path in own] == [False, True, True]
    assert kept.size == files.LEAST + 100_000


def test_where_all_is_full_whoever_has_most_loses_and_nobody_is_locked_out(folder):
    kept = uploads(folder, upload_bytes=4 * files.LEAST, client_uploads=9)
    theirs = brought(folder, "theirs")
    kept.add("b", theirs)
    own = [brought(folder, str(i)) for i in range(3)]
    for path in own:
        kept.add("a", path)
    new = brought(folder, "new")
    kept.add("c", new)
    assert theirs.exists() and new.exists() and not own[0].exists()


def test_a_file_that_two_brought_goes_when_the_second_loses_it(folder):
    kept = uploads(folder, client_uploads=1)
    shared = brought(folder, "shared")
    kept.add("a", shared)
    kept.add("b", shared)
    kept.add("a", brought(folder, "1"))
    assert shared.exists()
    kept.add("b", brought(folder, "2"))
    assert not shared.exists()


def test_a_file_elsewhere_is_not_noted(folder, tmp_path):
    kept = uploads(folder)
    (tmp_path / "other").write_text("x")
    kept.add("a", tmp_path / "other")
    assert not kept.files and (tmp_path / "other").exists()


def aged(path: Path, seconds: float) -> Path:
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


def test_the_sweep_deletes_halves_after_a_minute_and_unread_files_after_ten(folder):
    now = [0.0]
    kept = uploads(folder, clock=lambda: now[0])
    whole = brought(folder, "whole")
    kept.add("a", whole)
    (folder / str(os.getpid())).touch()
    fresh, half = folder / "tmpfresh", aged_file(folder / "tmphalf", 61)
    fresh.touch()
    stray = aged(brought(folder, "stray"), 601)
    empty = folder / "hash-empty"
    empty.mkdir()
    aged(empty, 61)
    aged(folder / str(os.getpid()), 10_000)
    names = {str(whole), str(half), "/gone"}
    kept.sweep([names])
    assert not half.exists() and not stray.exists() and not empty.exists()
    assert fresh.exists() and whole.exists() and names == {str(whole)}
    assert (folder / str(os.getpid())).exists()
    now[0] = 601.0
    kept.sweep()
    assert not whole.exists() and not kept.files


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


def test_a_process_claims_a_folder_before_gradio_and_takes_it_away(tmp_path):
    left = tmp_path / "mlpmem-dead"
    left.mkdir()
    (left / "4711").touch()
    aged(left, 4000)
    (tmp_path / "mlpmem-notours").mkdir()
    aged(tmp_path / "mlpmem-notours", 4000)
    made = claim(GRADIO_TEMP_DIR=str(tmp_path))
    folder, gradio = made.stdout.split()
    assert Path(folder).parent == tmp_path and gradio == "False"
    assert [path.name for path in tmp_path.iterdir()] == ["mlpmem-notours"]


def test_a_foreign_file_of_gradios_name_does_not_matter_and_no_folder_is_a_sentence(tmp_path):
    (tmp_path / "gradio").write_text("somebody else's")
    assert claim(TMPDIR=str(tmp_path), GRADIO_TEMP_DIR="").returncode == 0
    said = claim(GRADIO_TEMP_DIR=str(tmp_path / "gradio")).stderr
    assert "no folder for uploads can be made" in said
    assert MlpMemError.__name__ in said
