"""The nine tasks of kNN-Prompt, zero-shot, by domain-conditional PMI; eight can be run.

Data: the folder knn_prompt_tasks as published: sst2/test.tsv (five classes, without the middle
one), mr, cr and hyp/test.csv {label, text}, rotten_tomatoes/test.jsonl {input, output},
cb/dev.jsonl and rte/val.jsonl {premise, hypothesis, label}, agn/test.csv {Class Index, Title,
Description}. For Yahoo the folder has only the label words. Prompts, label words and synonyms are
the published ones. The paper's figures are multiples of 1/56 on CB, this file, and of 1/516 on HYP,
a longer file that the folder lacks.
Metrics: accuracy of the likeliest label word ("lm"); dcpmi, by the word's log-prob minus its
log-prob after the domain premise; fuzzy_dcpmi, that sum over a label's one-token synonyms, which is
the published score. If a small vocabulary has no one-token synonym, the whole label word is scored.
Source: Shi et al. 2022, Holtzman et al. 2021; the paper's table 2.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlpmem.engine.systems import System
from mlpmem.errors import MlpMemError
from train.measure.batches import next_tokens, score_continuations
from train.measure.findings import Finding
from train.tasks.cloze import plain_ids
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
class Dataset:
    """One task's files, label words and domain premise."""

    file: str
    read: Callable[[Path], Examples]
    words: tuple[str, ...]  # one per label
    domain: str
    synonyms: str | tuple[tuple[str, ...], ...]  # a file, or the synonyms by label


def read_sst2(path: Path) -> Examples:
    """Yield the sentences that are not neutral; lines are "__label__4<tab>text"."""
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
        question = f' question: Given that "{row["premise"]}" Is "{row["hypothesis"]}"'
        yield f"{question}{CB}", labels.index(row["label"])


def read_agn(path: Path) -> Examples:
    """Yield news of four topics."""
    rows = table(path)
    need(path, rows, "Class Index", "Title", "Description")
    for row in rows:
        yield f"{row['Title']} \n {row['Description']} topic:", int(row["Class Index"]) - 1


OPINION, OPINIONS = (" terrible", " great"), "sst2/label_names_sentidict.txt"
DATASETS = {
    "sst2": Dataset("sst2/test.tsv", read_sst2, OPINION, SENTIMENT, OPINIONS),
    "mr": Dataset("mr/test.csv", read_reviews, OPINION, SENTIMENT, OPINIONS),
    "cr": Dataset("cr/test.csv", read_reviews, OPINION, SENTIMENT, OPINIONS),
    "rt": Dataset("rotten_tomatoes/test.jsonl", read_rotten, OPINION, SENTIMENT, OPINIONS),
    "hyp": Dataset(
        "hyp/test.csv", read_hyp, (" neutral", " partisan"), HYP,
        ((" neutral", " fair", " objective"), (" partisan", " biased", " unfair")),
    ),
    "cb": Dataset(
        "cb/dev.jsonl", read_cb, (" true", " false", " neither"), " the answer is:",
        (TRUE, FALSE, (" neither",)),
    ),
    "rte": Dataset("rte/val.jsonl", read_rte, (" true", " false"), RTE, (TRUE, FALSE)),
    "agn": Dataset(
        "agn/test.csv", read_agn, (" world", " sports", " business", " science"), " topic:",
        "agn/label_names_kb.txt",
    ),
}  # fmt: skip


def synonyms(inputs: TaskInput, dataset: Dataset) -> tuple[tuple[str, ...], ...]:
    """Return the synonyms by label; a file's lists are cut to the shortest list's length."""
    if not isinstance(dataset.synonyms, str):
        return dataset.synonyms
    path = inputs.file(f"{FOLDER}/{dataset.synonyms}")
    lines = text_of(path).strip().split("\n")
    words = [[f" {word}" for word in line.strip().split(", ")] for line in lines]
    if len(words) != len(dataset.words):
        raise MlpMemError(
            f"{path.name}: it must have one line of label words for each of {len(dataset.words)} "
            f"labels; got {len(words)} lines. Get the published file"
        )
    return tuple(tuple(line[: min(map(len, words))]) for line in words)


def run(inputs: TaskInput) -> list[Finding]:
    """Return findings on every task whose files exist; MissingData if none does."""
    findings, missing = [], []
    for name, dataset in DATASETS.items():
        try:
            findings += _run_dataset(inputs, name, dataset)
        except MissingData as error:
            missing.append(error)
    if not findings:
        raise missing[0]
    return findings


def _run_dataset(inputs: TaskInput, name: str, dataset: Dataset) -> list[Finding]:
    """Return findings on one of the tasks."""
    findings = []
    path = inputs.file(f"{FOLDER}/{dataset.file}")
    examples = inputs.sample(list(dataset.read(path)), name)
    labels = np.array([label for _, label in examples])
    by_label = synonyms(inputs, dataset)
    for system in inputs.systems:
        predicted = predictions(system, [p for p, _ in examples], dataset, by_label)
        values = {metric: chosen == labels for metric, chosen in predicted.items()}
        findings += report(inputs, "knn_prompt", system, values, {name: range(len(labels))})
    return findings


def predictions(
    system: System, premises: Sequence[str], dataset: Dataset, by_label: Sequence[Sequence[str]]
) -> dict[str, np.ndarray]:
    """Return {metric: (Q,) predicted label} of premises."""
    tokens = {
        word: plain_ids(system.decoder.tokenizer, word)
        for words in (dataset.words, *by_label)
        for word in words
    }
    single = [(word,) for word in dataset.words]
    fuzzy = [
        tuple(word for word in words if len(tokens[word]) == 1) or own
        for words, own in zip(by_label, single, strict=True)
    ]
    scored = list(dict.fromkeys(word for words in (*single, *fuzzy) for word in words))
    prompts = [system.decoder.encode(text) for text in (dataset.domain, *premises)]
    log_probs = word_scores(system, prompts, [tokens[word] for word in scored])
    gain = log_probs[1:] - log_probs[:1]  # (Q, n)

    def best(scores: np.ndarray, labels: Sequence[Sequence[str]]) -> np.ndarray:
        columns = [[scored.index(word) for word in words] for words in labels]
        return np.stack([scores[:, c].sum(1) for c in columns], 1).argmax(1)

    return {
        "lm": best(log_probs[1:], single),
        "dcpmi": best(gain, single),
        "fuzzy_dcpmi": best(gain, fuzzy),
    }


def word_scores(
    system: System, prompts: Sequence[Sequence[int]], words: Sequence[Sequence[int]]
) -> np.ndarray:
    """Return the log-probs (Q, n) of whole words, given as ids, after each prompt."""
    log_probs = np.zeros((len(prompts), len(words)))
    short = [i for i, ids in enumerate(words) if len(ids) == 1]
    next_log_probs = next_tokens(system, prompts, [words[i][0] for i in short])
    log_probs[:, short] = np.log(np.exp(next_log_probs) + FLOOR)
    for i, ids in enumerate(words):
        if len(ids) > 1:
            pairs = [(prompt, ids) for prompt in prompts]
            log_probs[:, i] = score_continuations(system, pairs).sums()
    return log_probs


TASK = Task("knn_prompt", "data", run)
