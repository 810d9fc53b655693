"""What a task is given and gives back, and reading the files it is about."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlpmem.engine.systems import System
from mlpmem.errors import MlpMemError
from train.measure import findings
from train.measure.findings import Finding


@dataclass(frozen=True)
class TaskInput:
    """Who is asked, about what."""

    systems: Sequence[System]
    data: Path | None  # folder of published data sets
    corpus: Path | None  # a run's corpus stage: the atlas's questions and documents
    limit: int  # questions at most, of every split; 0 is all
    how: str  # the command that repeats it
    seed: int = 0
    wordings: tuple[str, ...] = ()  # of the atlas's questions; none: those the task measures on

    def some(self, rows: Sequence, *parts: object) -> list:
        """Return at most `limit` rows, drawn by seed and parts, in their order."""
        if not self.limit or len(rows) <= self.limit:
            return list(rows)
        luck = np.random.default_rng([self.seed, *(hash_of(part) for part in parts)])
        return [rows[i] for i in sorted(luck.choice(len(rows), self.limit, replace=False))]

    def file(self, name: str) -> Path:
        """Return a file of the data folder; MissingData where it is not there."""
        if self.data is None or not (self.data / name).is_file():
            where = "no folder was given" if self.data is None else f"{self.data} lacks it"
            raise MissingData(f"{name}: {where}; name the folder that has it with --data")
        return self.data / name

    def corpus_file(self, name: str) -> Path:
        """Return a file or folder of the run's corpus; MissingData where it is not there."""
        if self.corpus is None or not (self.corpus / name).exists():
            raise MissingData(
                f"{name}: {self.corpus or 'the run'} has none; this task asks about the atlas. "
                "`python -m train corpus atlas` makes it in half a minute, --run names the folder"
            )
        return self.corpus / name


class MissingData(MlpMemError):
    """A task's data is not here; the other tasks may still run."""


@dataclass(frozen=True)
class Task:
    """A task: what it is called, and what it makes of who is asked."""

    name: str
    about: str  # "atlas" or "data"
    run: Callable[[TaskInput], list[Finding]]


def hash_of(part: object) -> int:
    """Return a number that follows from a part's text, the same in every process."""
    return int.from_bytes(str(part).encode()[:8].ljust(8), "little")


def report(
    asked: TaskInput,
    study: str,
    system: System,
    values: Mapping[str, Sequence],
    splits: Mapping[str, Sequence[int]],
) -> list[Finding]:
    """Return findings of values by metric, over the members of every split.

    Booleans give a share with Wilson's interval, numbers a mean with a bootstrap's.
    """
    made = []
    for split, members in splits.items():
        for metric, all_of in values.items():
            mine = np.asarray(all_of)[np.asarray(members, np.int64)]
            if not len(mine):
                continue
            found = findings.share(mine) if mine.dtype == bool else findings.mean(mine)
            made.append(Finding(study, system.name, split, metric, how=asked.how, **found))
    return made


def text_of(path: Path) -> str:
    """Return a file's text; MlpMemError where it is no UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise _unreadable(path, error) from error


def json_lines(path: Path) -> list[dict]:
    """Return the objects of a file of one a line, or of one list; MlpMemError for anything else."""
    text = text_of(path)
    try:
        if text.lstrip()[:1] == "[":
            return json.loads(text)
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise _unreadable(path, error) from error


def table(path: Path) -> list[dict]:
    """Return the rows of a .csv file with a head line; MlpMemError for a file without rows."""
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
    """Return what to say of a file of another form."""
    return MlpMemError(
        f"{path.name}: it is not in the published form ({why}); the task's docstring says which "
        "file it reads, get that one"
    )
