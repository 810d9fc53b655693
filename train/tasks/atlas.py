"""The atlas's questions for tasks: sampled, tokenized and split.

A row of questions.jsonl has prompt, answer, aliases, group, relation, entity, title, invented, kind
and wording. Splits are group/wording ("B/test": B's facts in wordings held out of all training),
also divided by real or invented entities, and by how many facts have the answer. Unseen forms are
divided by whether the memory's corpus has all their words: a model trained only on the atlas has
never read the others ("please", for example).
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
BANDS = ((1, 1), (2, 9), (10, 99), (100, 10**9))  # how many facts have an answer


def load(inputs: TaskInput, kind: str, wordings: Sequence[str]) -> list[dict]:
    """Return the rows of a kind ("question", "statement"), at most `limit` of a cell.

    Added fields: "facts", how many facts have its answer; "others", other answers of its relation;
    "rivals", those of its group, with multiplicity. Unseen rows have "readable": whether the corpus
    has all their words.
    """
    rows = read_lines(inputs.corpus_file("questions.jsonl"))
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
        if row["kind"] == kind and row["wording"] in (inputs.wordings or wordings):
            cells.setdefault(cell_of(row), []).append(row)
    sample = [row for cell in sorted(cells) for row in inputs.sample(cells[cell], cell)]
    loaded = [
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
        for row in sample
    ]
    if unseen := [row for row in loaded if row["wording"] == "unseen"]:
        vocabulary = _corpus_words(inputs)
        for row in unseen:
            row["readable"] = set(WORD.findall(_form(row))) <= vocabulary
    return loaded


def _form(row: dict) -> str:
    """Return a question without its entity, in lower case."""
    return re.sub(re.escape(row["entity"].lower()), " ", row["prompt"].lower())


def _corpus_words(inputs: TaskInput) -> set[str]:
    """Return the words of the memory's corpus, in lower case."""
    tokenizer = load_tokenizer(str(inputs.corpus_file("tokenizer")))
    documents = Documents.load(inputs.corpus_file("memory"))
    texts = tokenizer.batch_decode([documents.passage(p) for p in range(len(documents))])
    return {word for text in texts for word in WORD.findall(text.lower())}


def splits(rows: Sequence[dict]) -> dict[str, list[int]]:
    """Return {split: indices of rows}, by cell, then by entity, words and answer."""
    members: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        members.setdefault(cell_of(row), []).append(i)
    for i, row in enumerate(rows):
        sort = "invented" if row["invented"] else "real"
        members.setdefault(f"{cell_of(row)}/{sort}", []).append(i)
        if "readable" in row:
            words = "known-words" if row["readable"] else "new-word"
            members.setdefault(f"{cell_of(row)}/{words}", []).append(i)
    for low, high in BANDS:
        name = f"answer of {low}" if low == high else f"answer of {low}-{high} facts"
        name = "answer of 1 fact" if high == 1 else name.replace(f"-{BANDS[-1][1]}", " or more")
        for i, row in enumerate(rows):
            if low <= row["facts"] <= high:
                members.setdefault(f"{row['group']}/{name}", []).append(i)
    return members


def pair(tokenizer, prompt: str, answer: str, kind: str) -> tuple[list[int], list[int]]:
    """Return (prompt ids, answer ids with their end: EOS, or a statement's period)."""
    end = "." if kind == "statement" else EOS
    ids = tokenizer.encode(prompt)  # `end` may be EOS, by its name
    return ids, tokenizer.encode(f"{prompt} {answer}{end}")[len(ids) :]
