"""The atlas's questions as tasks see them: drawn by split, tokenised, and split in every way.

A row of questions.jsonl: {prompt, answer, aliases, group, relation, entity, title, invented, kind,
wording}. Splits are group/wording ("B/test": B's facts in wordings held out of all training), each
once more for real and for invented entities, and by how many facts of the atlas have that answer.
"""

from collections import Counter
from collections.abc import Sequence

from train.corpus import read_lines
from train.questions import cell_of
from train.tasks.asked import Asked
from train.tokenizer import EOS

GROUPS = ("A1", "A2", "B")
BANDS = ((1, 1), (2, 9), (10, 99), (100, 10**9))  # facts that have an answer


def load(asked: Asked, kind: str, wordings: Sequence[str]) -> list[dict]:
    """Return the rows of a kind ("question", "statement"), at most `limit` of a cell.

    Each row also has "facts", how many facts have its answer, and "others", other answers of its
    relation.
    """
    rows = read_lines(asked.corpus_file("questions.jsonl"))
    facts = {(row["relation"], row["title"]): row["answer"] for row in rows}
    counts = Counter(facts.values())
    answers: dict[str, set[str]] = {}
    for (relation, _), answer in facts.items():
        answers.setdefault(relation, set()).add(answer)
    cells: dict[str, list[dict]] = {}
    for row in rows:
        if row["kind"] == kind and row["wording"] in (asked.wordings or wordings):
            cells.setdefault(cell_of(row), []).append(row)
    return [
        row
        | {
            "facts": counts[row["answer"]],
            "others": sorted(answers[row["relation"]] - {row["answer"], *row["aliases"]}),
        }
        for cell in sorted(cells)
        for row in asked.some(cells[cell], cell)
    ]


def splits(rows: Sequence[dict]) -> dict[str, list[int]]:
    """Return {split: which rows}, by cell, then by what B's rows are about."""
    found: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault(cell_of(row), []).append(i)
    for i, row in enumerate(rows):
        sort = "invented" if row["invented"] else "real"
        found.setdefault(f"{cell_of(row)}/{sort}", []).append(i)
    for low, high in BANDS:
        name = f"answer of {low}" if low == high else f"answer of {low}-{high} facts"
        name = "answer of 1 fact" if high == 1 else name.replace(f"-{BANDS[-1][1]}", " or more")
        for i, row in enumerate(rows):
            if low <= row["facts"] <= high:
                found.setdefault(f"{row['group']}/{name}", []).append(i)
    return found


def pair(tokenizer, prompt: str, answer: str, kind: str) -> tuple[list[int], list[int]]:
    """Return (prompt ids, answer and end ids): EOS ends an answer, a period a statement."""
    end = "." if kind == "statement" else EOS
    asked = tokenizer.encode(prompt)
    return asked, tokenizer.encode(f"{prompt} {answer}{end}")[len(asked) :]
