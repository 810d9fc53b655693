"""Questions as documents: one passage per prompt and right answer, in cells of group and wording.

Greedy generation gives the right answer exactly if the most probable token is right at every
position of the answer. So one teacher-forced pass measures exact match at every lambda.
"""

import random
from dataclasses import dataclass

import numpy as np

from mlpmem.retrieval.documents import Documents, join_passages
from train.corpora.tokenizer import EOS


@dataclass(frozen=True)
class Questions:
    """Q questions as passages, and the positions of their answers."""

    rows: list[dict]
    cells: list[str]  # of each question: "B/test", "A2/statement_test", ...
    documents: Documents  # passage q is prompt + answer + end
    positions: np.ndarray  # (P,) of answer and end tokens, in documents.tokens
    question_of: np.ndarray  # (P,) index of the question


def cell_of(row: dict) -> str:
    """Return the cell of a question: its group, kind and wording."""
    statement = "statement_" if row["kind"] == "statement" else ""
    return f"{row['group']}/{statement}{row['wording']}"


def sample_questions(rows: list[dict], cells: list[str], most: int, seed: int) -> list[dict]:
    """Return at most `most` questions per cell, drawn by seed."""
    by_cell: dict[str, list[dict]] = {cell: [] for cell in cells}
    for row in rows:
        if cell_of(row) in by_cell:
            by_cell[cell_of(row)].append(row)
    return [
        row
        for cell, members in by_cell.items()
        for row in random.Random(f"{seed}/{cell}").sample(members, min(most, len(members)))
    ]


def encode_questions(tokenizer, rows: list[dict]) -> Questions:
    """Return tokenised questions; an answer ends with EOS, that of a statement with a period.

    Rows of chats have their token ids already.
    """
    passages, spans = [], []
    for i, row in enumerate(rows):
        ids, prompt = (
            (row["ids"], row["prompt_tokens"]) if "ids" in row else _encode(tokenizer, row)
        )
        passages.append((i, ids))
        spans.append((prompt, len(ids)))
    documents = join_passages(passages, [r["title"] for r in rows], [r["group"] for r in rows])
    starts = documents.offsets[:-1]
    positions = [start + np.arange(a, b) for start, (a, b) in zip(starts, spans, strict=True)]
    return Questions(
        rows=rows,
        cells=[cell_of(row) for row in rows],
        documents=documents,
        positions=np.concatenate(positions),
        question_of=np.repeat(np.arange(len(rows)), [b - a for a, b in spans]),
    )


def _encode(tokenizer, row: dict) -> tuple[list[int], int]:
    """Return a question's token ids with its answer, and the number of those of its prompt."""
    prompt = tokenizer.encode(row["prompt"])
    end = "." if row["kind"] == "statement" else EOS
    ids = tokenizer.encode(f"{row['prompt']} {row['answer']}{end}")
    assert ids[: len(prompt)] == prompt, (row["prompt"], "its tokens change with the answer")
    return ids, len(prompt)


def tally(questions: Questions, right: np.ndarray) -> dict[str, dict]:
    """Return {cell: {"n", "right"}} of right (P,) bool: a question needs all its tokens right."""
    whole = np.ones(len(questions.rows), bool)
    np.logical_and.at(whole, questions.question_of, right)
    cells = np.array(questions.cells)
    return {
        cell: {"n": int((cells == cell).sum()), "right": int(whole[cells == cell].sum())}
        for cell in dict.fromkeys(questions.cells)
    }
