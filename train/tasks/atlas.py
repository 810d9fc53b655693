"""The atlas's questions as tasks see them: drawn by split, tokenised, and split in every way.

A row of questions.jsonl: {prompt, answer, aliases, group, relation, entity, title, invented, kind,
wording}. Splits are group/wording ("B/test": B's facts in wordings held out of all training), each
once more for real and for invented entities, and by how many facts of the atlas have that answer.
Unseen forms are split by whether the memory's corpus has all their words: a model that is trained
on the atlas alone has never read the others ("please", for one).
"""

import re
from collections import Counter
from collections.abc import Sequence

from mlpmem.model.tokenizer import load_tokenizer
from mlpmem.retrieval.documents import Documents
from train.corpora.tokenizer import EOS
from train.files import read_lines
from train.measure.questions import cell_of
from train.tasks.task import TaskInput

WORD = re.compile(r"'s|[^\W\d_]+")
BANDS = ((1, 1), (2, 9), (10, 99), (100, 10**9))  # facts that have an answer


def load(asked: TaskInput, kind: str, wordings: Sequence[str]) -> list[dict]:
    """Return the rows of a kind ("question", "statement"), at most `limit` of a cell.

    Each row also has "facts", how many facts have its answer, "others", other answers of its
    relation, "rivals", those of its own group, each as often as it is one there, and an unseen one
    "readable", whether the corpus has all its words.
    """
    rows = read_lines(asked.corpus_file("questions.jsonl"))
    facts = {(row["relation"], row["title"]): row["answer"] for row in rows}
    groups = {row["title"]: row["group"] for row in rows}
    rivals: dict[tuple[str, str], list[str]] = {}
    for (relation, title), answer in sorted(facts.items()):
        rivals.setdefault((relation, groups[title]), []).append(answer)
    counts = Counter(facts.values())
    answers: dict[str, set[str]] = {}
    for (relation, _), answer in facts.items():
        answers.setdefault(relation, set()).add(answer)
    cells: dict[str, list[dict]] = {}
    for row in rows:
        if row["kind"] == kind and row["wording"] in (asked.wordings or wordings):
            cells.setdefault(cell_of(row), []).append(row)
    drawn = [row for cell in sorted(cells) for row in asked.some(cells[cell], cell)]
    made = [
        row
        | {
            "facts": counts[row["answer"]],
            "others": sorted(answers[row["relation"]] - {row["answer"], *row["aliases"]}),
            "rivals": [
                other
                for other in rivals[row["relation"], row["group"]]
                if other not in (row["answer"], *row["aliases"])
            ],
        }
        for row in drawn
    ]
    if unseen := [row for row in made if row["wording"] == "unseen"]:
        words = _words_of(asked)
        for row in unseen:
            row["readable"] = set(WORD.findall(_form(row))) <= words
    return made


def _form(row: dict) -> str:
    """Return a question without the name it is about, in small letters."""
    return re.sub(re.escape(row["entity"].lower()), " ", row["prompt"].lower())


def _words_of(asked: TaskInput) -> set[str]:
    """Return the words of the memory's corpus, in small letters."""
    tokenizer = load_tokenizer(str(asked.corpus_file("tokenizer")))
    documents = Documents.load(asked.corpus_file("memory"))
    texts = tokenizer.batch_decode([documents.passage(p) for p in range(len(documents))])
    return {word for text in texts for word in WORD.findall(text.lower())}


def splits(rows: Sequence[dict]) -> dict[str, list[int]]:
    """Return {split: which rows}, by cell, then by what B's rows are about."""
    found: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault(cell_of(row), []).append(i)
    for i, row in enumerate(rows):
        sort = "invented" if row["invented"] else "real"
        found.setdefault(f"{cell_of(row)}/{sort}", []).append(i)
        if "readable" in row:
            words = "known-words" if row["readable"] else "new-word"
            found.setdefault(f"{cell_of(row)}/{words}", []).append(i)
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
