"""The nine tasks of kNN-Prompt, zero-shot, by domain-conditional PMI; eight can be run.

Data: the folder knn_prompt_tasks as published: sst2/test.tsv (five classes, the middle one left
out), mr, cr and hyp/test.csv {label, text}, rotten_tomatoes/test.jsonl {input, output},
cb/dev.jsonl and rte/val.jsonl {premise, hypothesis, label}, agn/test.csv {Class Index, Title,
Description}. Of Yahoo only the label words are there. Prompts, label words and their synonyms are
the published ones. (The paper's figures are multiples of 1/56 on CB, this file, and of 1/516 on
HYP, whose longer file is not here.)
Metrics: accuracy of the likeliest label word ("lm"); dcpmi, by the word's log-prob less its
log-prob after the domain's premise; fuzzy_dcpmi, that summed over a label's synonyms of one token,
which is the published score. Where a small vocabulary has no such word, the label's own is judged
whole.
Source: Shi et al. 2022, Holtzman et al. 2021; the paper's table 2.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlpmem.engine.systems import System
from mlpmem.errors import MlpMemError
from train.measure.batches import judge, next_tokens
from train.measure.findings import Finding
from train.tasks.cloze import plain
from train.tasks.task import MissingData, Task, TaskInput, json_lines, need, report, table, text_of

FOLDER = "knn_prompt_tasks"
SENTIMENT = " It was"
HYP = "\n neutral or partisan? Answer:"
RTE = " true or false?\n answer:"
CB = " true, false, or neither?\n answer:"
TRUE = (" true", " yes", " accurate", " correct", " faithful")
FALSE = (" false", " no", " incorrect", " wrong", " untrue", " unfaithful")
FLOOR = 1e-10  # added to a token's probability, as published

Examples = Iterator[tuple[str, int]]  # premise, label


@dataclass(frozen=True)
class Kind:
    """One task's files, words and domain premise."""

    file: str
    read: Callable[[Path], Examples]
    words: tuple[str, ...]  # one a label
    domain: str
    synonyms: str | tuple[tuple[str, ...], ...]  # a file, or the words by label


def read_sst2(path: Path) -> Examples:
    """Yield the sentences that are not neutral: "__label__4<tab>text"."""
    for line in text_of(path).split("\n"):
        mark, _, sentence = line.strip().partition("\t")
        if mark and mark[-1] != "3":
            yield f"{sentence}{SENTIMENT}", int(mark[-1] > "3")


def read_reviews(path: Path) -> Examples:
    """Yield reviews of a .csv file {label, text}."""
    rows = table(path)
    need(path, rows, "label", "text")
    yield from ((f"{row['text']}{SENTIMENT}", int(row["label"])) for row in rows)


def read_rotten(path: Path) -> Examples:
    """Yield reviews of JSON lines {input, output}."""
    rows = json_lines(path)
    need(path, rows, "input", "output")
    yield from ((f"{row['input']}{SENTIMENT}", int(row["output"] == "positive")) for row in rows)


def read_hyp(path: Path) -> Examples:
    """Yield news articles, neutral or partisan."""
    rows = table(path)
    need(path, rows, "label", "text")
    yield from ((f"{row['text'].strip()}{HYP}", int(row["label"])) for row in rows)


def read_rte(path: Path) -> Examples:
    """Yield premise and hypothesis, entailed or not."""
    rows = json_lines(path)
    need(path, rows, "premise", "hypothesis", "label")
    for row in rows:
        premise = f" {row['premise']}\n question: {row['hypothesis']} {RTE}"
        yield premise, int(row["label"] != "entailment")


def read_cb(path: Path) -> Examples:
    """Yield premise and hypothesis: entailment, contradiction, neutral."""
    rows = json_lines(path)
    need(path, rows, "premise", "hypothesis", "label")
    labels = ("entailment", "contradiction", "neutral")
    for row in rows:
        said = f' question: Given that "{row["premise"]}" Is "{row["hypothesis"]}"'
        yield f"{said}{CB}", labels.index(row["label"])


def read_agn(path: Path) -> Examples:
    """Yield news of four topics."""
    rows = table(path)
    need(path, rows, "Class Index", "Title", "Description")
    for row in rows:
        yield f"{row['Title']} \n {row['Description']} topic:", int(row["Class Index"]) - 1


OPINION, OPINIONS = (" terrible", " great"), "sst2/label_names_sentidict.txt"
KINDS = {
    "sst2": Kind("sst2/test.tsv", read_sst2, OPINION, SENTIMENT, OPINIONS),
    "mr": Kind("mr/test.csv", read_reviews, OPINION, SENTIMENT, OPINIONS),
    "cr": Kind("cr/test.csv", read_reviews, OPINION, SENTIMENT, OPINIONS),
    "rt": Kind("rotten_tomatoes/test.jsonl", read_rotten, OPINION, SENTIMENT, OPINIONS),
    "hyp": Kind(
        "hyp/test.csv", read_hyp, (" neutral", " partisan"), HYP,
        ((" neutral", " fair", " objective"), (" partisan", " biased", " unfair")),
    ),
    "cb": Kind(
        "cb/dev.jsonl", read_cb, (" true", " false", " neither"), " the answer is:",
        (TRUE, FALSE, (" neither",)),
    ),
    "rte": Kind("rte/val.jsonl", read_rte, (" true", " false"), RTE, (TRUE, FALSE)),
    "agn": Kind(
        "agn/test.csv", read_agn, (" world", " sports", " business", " science"), " topic:",
        "agn/label_names_kb.txt",
    ),
}  # fmt: skip


def synonyms(asked: TaskInput, kind: Kind) -> tuple[tuple[str, ...], ...]:
    """Return the synonyms by label; those of a file are cut to the shortest label's number."""
    if not isinstance(kind.synonyms, str):
        return kind.synonyms
    path = asked.file(f"{FOLDER}/{kind.synonyms}")
    lines = text_of(path).strip().split("\n")
    found = [[f" {word}" for word in line.strip().split(", ")] for line in lines]
    if len(found) != len(kind.words):
        raise MlpMemError(
            f"{path.name}: {len(found)} lines of label words, {len(kind.words)} labels; get the "
            "published file"
        )
    return tuple(tuple(line[: min(map(len, found))]) for line in found)


def run(asked: TaskInput) -> list[Finding]:
    """Return findings on every task whose files are there; MissingData where none is."""
    made, missing = [], []
    for name, kind in KINDS.items():
        try:
            made += _run_kind(asked, name, kind)
        except MissingData as error:
            missing.append(error)
    if not made:
        raise missing[0]
    return made


def _run_kind(asked: TaskInput, name: str, kind: Kind) -> list[Finding]:
    """Return findings on one of the tasks."""
    made = []
    path = asked.file(f"{FOLDER}/{kind.file}")
    examples = asked.some(list(kind.read(path)), name)
    labels = np.array([label for _, label in examples])
    by_label = synonyms(asked, kind)
    for system in asked.systems:
        found = predictions(system, [p for p, _ in examples], kind, by_label)
        values = {metric: chosen == labels for metric, chosen in found.items()}
        made += report(asked, "knn_prompt", system, values, {name: range(len(labels))})
    return made


def predictions(
    system: System, premises: Sequence[str], kind: Kind, by_label: Sequence[Sequence[str]]
) -> dict[str, np.ndarray]:
    """Return {metric: (Q,) predicted label} of premises."""
    tokens = {
        word: plain(system.decoder.tokenizer, word)
        for words in (kind.words, *by_label)
        for word in words
    }
    alone = [(word,) for word in kind.words]
    fuzzy = [
        tuple(word for word in words if len(tokens[word]) == 1) or own
        for words, own in zip(by_label, alone, strict=True)
    ]
    wanted = list(dict.fromkeys(word for words in (*alone, *fuzzy) for word in words))
    prompts = [system.decoder.encode(text) for text in (kind.domain, *premises)]
    found = word_scores(system, prompts, [tokens[word] for word in wanted])
    gain = found[1:] - found[:1]  # (Q, n)

    def best(scores: np.ndarray, labels: Sequence[Sequence[str]]) -> np.ndarray:
        columns = [[wanted.index(word) for word in words] for words in labels]
        return np.stack([scores[:, c].sum(1) for c in columns], 1).argmax(1)

    return {
        "lm": best(found[1:], alone),
        "dcpmi": best(gain, alone),
        "fuzzy_dcpmi": best(gain, fuzzy),
    }


def word_scores(
    system: System, prompts: Sequence[Sequence[int]], words: Sequence[Sequence[int]]
) -> np.ndarray:
    """Return the log-probs (Q, n) of whole words, given by their ids, after every prompt."""
    found = np.zeros((len(prompts), len(words)))
    short = [i for i, ids in enumerate(words) if len(ids) == 1]
    one = next_tokens(system, prompts, [words[i][0] for i in short])
    found[:, short] = np.log(np.exp(one) + FLOOR)
    for i, ids in enumerate(words):
        if len(ids) > 1:
            found[:, i] = judge(system, [(prompt, ids) for prompt in prompts]).sums()
    return found


TASK = Task("knn_prompt", "data", run)
