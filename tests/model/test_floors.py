"""The lowest rooms import nothing from a room above, not even types."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BELOW = {"fast": {"errors", "fast"}, "model": {"errors", "formats", "fast", "model"}}


def imported(path: Path) -> set[str]:
    """Return the rooms of mlpmem that a file imports from, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("mlpmem.")}


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_only_what_is_below_it(room):
    files = sorted((ROOT / "mlpmem" / room).glob("*.py"))
    assert len(files) > 3
    assert {path.name: imported(path) - BELOW[room] for path in files} == {
        path.name: set() for path in files
    }
