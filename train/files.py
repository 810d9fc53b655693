"""JSON files, hashes, and a print that flushes."""

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from mlpmem.errors import MlpMemError


def write_json(path: Path, value: object) -> None:
    """Write JSON to a temporary file and rename it, so that readers never see a partial file."""
    temporary = path.with_name(path.name + ".new")
    text = json.dumps(value, indent=1, ensure_ascii=False)
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """Return the value of a JSON file; MlpMemError if it is not valid JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MlpMemError(
            f"{path} is damaged ({str(error)[:100]}). Delete {path.parent} and run again the "
            "command that made it"
        ) from error


def file_hash(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: object) -> str:
    """Return the sha256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def print_line(line: str) -> None:
    """Print one line and flush, because logs are read while stages run."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def read_lines(path: Path) -> list[dict]:
    """Return the objects of a JSON-lines file."""
    with path.open(encoding="utf-8") as file:  # splitlines would also cut at U+2028
        return [json.loads(line) for line in file]


def write_lines(path: Path, rows: Iterable[dict]) -> None:
    """Write objects as JSON lines."""
    lines = chain.from_iterable((json.dumps(row, ensure_ascii=False), "\n") for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
