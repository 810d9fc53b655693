"""A task's input and output, and readers of its files."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlpmem.engine.systems import System
from mlpmem.errors import MlpMemError
from train.measure.findings import Finding, mean, share


@dataclass(frozen=True)
class TaskInput:
    """The systems to evaluate, and the data."""

    systems: Sequence[System]
    data: Path | None  # folder of published data sets
    corpus: Path | None  # a run's stage corpus: the atlas's questions and documents
    limit: int  # questions per split, at most; 0: all
    how: str  # the command that reproduces the findings
    seed: int = 0
    wordings: tuple[str, ...] = ()  # of the atlas's questions; empty: the task's own

    def sample(self, rows: Sequence, *parts: object) -> list:
        """Return at most `limit` rows in order, sampled by seed and parts."""
        if not self.limit or len(rows) <= self.limit:
            return list(rows)
        rng = np.random.default_rng([self.seed, *(hash_of(part) for part in parts)])
        return [rows[i] for i in sorted(rng.choice(len(rows), self.limit, replace=False))]

    def file(self, name: str) -> Path:
        """Return a file of the data folder; MissingData if it does not exist."""
        if self.data is None or not (self.data / name).is_file():
            why = "no folder was given" if self.data is None else f"not in {self.data}"
            raise MissingData(f"{name}: {why}; give the folder that has it with --data")
        return self.data / name

    def corpus_file(self, name: str) -> Path:
        """Return a file or folder of the run's corpus; MissingData if it does not exist."""
        if self.corpus is None or not (self.corpus / name).exists():
            raise MissingData(
                f"{name}: not in {self.corpus or 'any run'}; this task needs the atlas. Make it "
                "with `python -m train corpus atlas` (half a minute), and give --run its folder"
            )
        return self.corpus / name


class MissingData(MlpMemError):
    """A task's data is missing; other tasks may still run."""


@dataclass(frozen=True)
class Task:
    """A task by name, and its function from input to findings."""

    name: str
    about: str  # its data: "atlas" or "data"
    run: Callable[[TaskInput], list[Finding]]


def hash_of(part: object) -> int:
    """Return a number from a part's first 8 bytes, the same in every process."""
    return int.from_bytes(str(part).encode()[:8].ljust(8), "little")


def report(
    inputs: TaskInput,
    study: str,
    system: System,
    values: Mapping[str, Sequence],
    splits: Mapping[str, Sequence[int]],
) -> list[Finding]:
    """Return findings of values by metric, over each split's members.

    Booleans give a share with Wilson's interval, numbers a mean with a bootstrap interval.
    """
    findings = []
    for split, members in splits.items():
        for metric, all_values in values.items():
            x = np.asarray(all_values)[np.asarray(members, np.int64)]
            if len(x):
                stats = share(x) if x.dtype == bool else mean(x)
                findings.append(Finding(study, system.name, split, metric, how=inputs.how, **stats))
    return findings


def text_of(path: Path) -> str:
    """Return a file's text; MlpMemError unless it is UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise _unreadable(path, error) from error


def json_lines(path: Path) -> list[dict]:
    """Return the objects of JSON lines or of one JSON list; MlpMemError for anything else."""
    text = text_of(path)
    try:
        if text.lstrip()[:1] == "[":
            return json.loads(text)
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise _unreadable(path, error) from error


def table(path: Path) -> list[dict]:
    """Return the rows of a .csv file with a header; MlpMemError for a file without rows."""
    rows = list(csv.DictReader(io.StringIO(text_of(path), newline="")))
    if not rows:
        raise _unreadable(path, "no rows")
    return rows


def need(path: Path, rows: Iterable[Mapping], *fields: str) -> None:
    """Raise MlpMemError unless every row of a file has these fields."""
    for number, row in enumerate(rows, 1):
        missing = [name for name in fields if not isinstance(row, Mapping) or row.get(name) is None]
        if missing:
            raise _unreadable(path, f"no {', '.join(missing)} in row {number}")


def _unreadable(path: Path, why: object) -> MlpMemError:
    """Return the error for a file in another format."""
    return MlpMemError(
        f"{path.name}: the file must have the published format; got {why}. Get the file that the "
        "task's docstring names"
    )
