"""`pip install` of this folder: every package is listed, and the embedded bundle comes along."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def test_every_folder_of_modules_is_a_listed_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    files = [p for top in ("mlpmem", "train") for p in (ROOT / top).rglob("*.py")]
    found = {p.parent.relative_to(ROOT).as_posix().replace("/", ".") for p in files}
    assert {*listed} == found | {"mlpmem.atlas", "mlpmem.smollm2"}


def test_uv_run_app_installs_what_requirements_and_pyproject_name():
    text = (ROOT / "app.py").read_text("utf-8")
    (block,) = re.findall(r"^# /// script\n(.*?)^# ///$", text, re.MULTILINE | re.DOTALL)
    script = tomllib.loads("".join(line.removeprefix("#") for line in block.splitlines(True)))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert script["dependencies"] == (ROOT / "requirements.txt").read_text("utf-8").split()
    assert script["requires-python"] == project["requires-python"]


def test_the_lock_has_what_is_required_and_all_that_it_brings():
    rows = (ROOT / ".github/constraints.txt").read_text("utf-8").splitlines()[1:]
    lock = dict(row.split("==") for row in rows)
    required = [Requirement(row) for row in (ROOT / "requirements.txt").read_text().split()]
    assert not [r for r in required if not r.specifier.contains(lock[canonicalize_name(r.name)])]
    brought = [Requirement(text) for name in lock for text in metadata.requires(name) or []]
    needed = {canonicalize_name(r.name) for r in brought
              if r.marker is None or r.marker.evaluate({"extra": ""})}  # fmt: skip
    assert needed <= {*lock} and list(lock) == sorted(lock)


@pytest.mark.slow
def test_installed_elsewhere_it_answers_from_the_embedded_bundle(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    source, made = tmp_path / "source", tmp_path / "venv"
    for name in ("mlpmem", "train", "assets"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    venv.create(made, with_pip=True)
    python = made / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    # torch and the others are taken from here, so nothing is downloaded
    Path(site.strip(), "base.pth").write_text(sysconfig.get_path("purelib"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    ours = os.environ | {"PYTHONPATH": sysconfig.get_path("purelib")}  # its setuptools may be old
    subprocess.run([python, "-m", "pip", "install", *options, str(source)], check=True, env=ours)
    code = (
        "import mlpmem; m = mlpmem.load(datastore=False); "
        "q = 'Question: What is the capital of Nigeria? Answer:'; "
        "print(mlpmem.__file__, m.generate(q, system='memory', max_new_tokens=12).text)"
    )
    run = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.startswith(site.strip()) and run.stdout.strip().endswith("Abuja"), run.stderr
