"""Spaces' folders: built, started as their host does, and used in a browser."""

import os
import subprocess
import venv
from pathlib import Path

import pytest
from conftest import start_space
from test_page import generate

from mlpmem.space.build import build


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def drive(page) -> None:
    """Run three columns, and open a token."""
    generate(page, "Peru is")
    for system in ("lm", "memory", "knn"):
        page.wait_for_selector(f"#pane-{system}[data-state=done]")
    page.click("#pane-knn .token >> nth=0")
    page.wait_for_selector("#drawer .neighbour")


@pytest.mark.slow
def test_a_cpu_space_answers_and_writes_only_its_cache(visit, servers):
    server = servers["space-cpu"].wait()
    space = servers.folder / "space-cpu"
    before = everything(space / "space")
    drive(visit("space-cpu"))
    assert everything(space / "space") == before
    assert everything(space / "home") == set()
    assert list((space / "cache").glob("keys-*.npy"))
    assert server.process.poll() is None


@pytest.mark.slow
def test_a_static_space_plays_from_files_only(chromium, tmp_path):
    site = build(tmp_path / "site", "static").folder
    page = chromium.new_context(offline=True).new_page()
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((site / "index.html").as_uri())
    page.wait_for_selector("#pane-memory[data-state=done]")
    page.click("#pane-memory .token >> nth=0")
    page.wait_for_selector("#drawer .candidate")
    page.context.close()
    assert all(url.startswith(site.as_uri()) for url in requests) and errors == []


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory):
    """Return the Python of an environment with only the packages that a Space's host installs."""
    folder = tmp_path_factory.mktemp("clean")
    built = build(folder / "space", "cpu").folder
    card = dict(line.split(": ", 1) for line in (built / "README.md").read_text("utf-8").split("\n")
                if line.startswith("sdk"))  # fmt: skip
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    host = f"gradio=={card['sdk_version'].strip(chr(34))}"
    command = [str(python), "-m", "pip", "install", "--quiet", host]
    subprocess.run([*command, "-r", str(built / "requirements.txt")], check=True)
    return str(python)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cpu", "zero"])
def test_a_space_runs_with_its_requirements_only(kind, clean_python, visit, servers):
    name = f"space-{kind}-clean"
    servers[name] = start_space(servers.folder / name, kind, clean_python)
    drive(visit(name))
