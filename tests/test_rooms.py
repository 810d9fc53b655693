"""Imports run downwards, and every room says what lives in it: the house stays as it was built."""

import ast
import logging.config
import re
from pathlib import Path

import pytest
from importlinter import cli

ROOT = Path(__file__).parents[1]
ROOMS = sorted(
    path.parent.relative_to(ROOT).as_posix()
    for top in ("mlpmem", "train")
    for path in (ROOT / top).rglob("__init__.py")
)
MODULES = 16  # of a room, at most


def test_imports_run_downwards_and_in_no_circle(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(logging.config, "dictConfig", lambda config: None)  # silences our loggers
    passed = cli.lint_imports(cache_dir=None, no_cache=True) == cli.EXIT_STATUS_SUCCESS
    assert passed, capsys.readouterr().out


def test_every_folder_of_modules_is_a_room():
    found = {p.parent for top in ("mlpmem", "train") for p in (ROOT / top).rglob("*.py")}
    assert sorted(p.relative_to(ROOT).as_posix() for p in found) == ROOMS


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_few_modules_and_says_what_lives_there(room):
    files = {path.name for path in (ROOT / room).glob("*.py")} - {"__init__.py"}
    assert 0 < len(files) <= MODULES
    text = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text("utf-8"))) or ""
    (first,) = re.findall(r"Open ([\w/]+\.py) first", text)
    assert (ROOT / room / first).is_file()
    named = [name for name in files if re.search(rf"\b{name.removesuffix('.py')}\b", text)]
    assert len(named) >= min(3, len(files)), "what lives there"
    assert re.search(r"\bimports?\b", text), "what it may import"
