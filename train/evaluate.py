"""Stage evaluate: every source at every lambda, fine-tuned decoders beside -> results.json."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from mlpmem.datastore import Datastore
from mlpmem.decoder import Decoder
from mlpmem.documents import Documents, join_passages
from mlpmem.memory import Memory
from train.corpus import read_lines
from train.finetune import compare_finetuned
from train.grid import LAMBDAS, Grid, Sources
from train.questions import Questions, ask, sample_questions, tally
from train.recipe import Evaluate
from train.stage import Context, finished_manifest, write_json

GROUPS = ("A1", "A2", "B")
CHOOSING = "dev"  # the held-out wordings that choose lambda; the others only measure
WORDINGS = ("seen", "test", "unseen", "statement_test")


def evaluate(context: Context) -> dict:
    """Return counts; writes results.json, one schema for page, README and exports."""
    config, inputs = context.config, context.inputs
    decoder = Decoder.load(inputs["decoder"])
    memory = Memory.load(inputs["memory"]).float().eval().bind(decoder)
    store = Datastore.load(inputs["datastore"])
    test = Test.load(inputs["corpus"], decoder.tokenizer, config, context.seed)
    measured = test.measure(Sources(decoder, memory, store, config.k, config.temperature))
    chosen = {source: choose_lambda(measured, source) for source in ("memory", "knn")}
    results = {
        "v": 1,
        "how": "python -m train evaluate",
        "choosing": CHOOSING,
        "config": dataclasses.asdict(config),
        "lmbda": chosen,
        "systems": [
            _system("lm", "decoder", measured, 0.0, decoder.bytes, _seconds(inputs["decoder"])),
            _system("memory", "decoder + memory", measured, chosen["memory"], memory.bytes // 2,
                    _seconds(inputs["memory"]) + _seconds(inputs["targets"])),
            _system("knn", "decoder + kNN", measured, chosen["knn"], store.bytes,
                    _seconds(inputs["datastore"])),
        ],
        "lambda_curves": {s: _curve(measured, s) for s in ("memory", "knn")},
        "corpus": finished_manifest(inputs["corpus"])["counts"],
        "keys": len(store),
    }  # fmt: skip
    write_json(context.folder / "sources.json", results)
    results["forgetting"] = [
        _summary(row["name"], row["label"], row["measured"], row)
        for row in compare_finetuned(context, test)
    ]
    write_json(context.folder / "results.json", results)
    return {"questions": len(test.questions.rows), "lmbda": chosen}


@dataclasses.dataclass(frozen=True)
class Measured:
    """One model's grid over questions and held-out text."""

    questions: Questions
    grid: Grid
    text_groups: np.ndarray  # (P,) group of every held-out position
    text: Grid

    def accuracy(self, source: str, lmbda: float) -> dict[str, dict]:
        """Return {cell: {"n", "right"}} at one of LAMBDAS."""
        return tally(self.questions, self.grid.right[source][:, LAMBDAS.index(lmbda)])

    def perplexity(self, source: str, lmbda: float) -> dict[str, float]:
        """Return {group: perplexity} of the held-out text."""
        nll = self.text.nll(source, lmbda)
        groups = dict.fromkeys(self.text_groups)
        return {g: float(np.exp(nll[self.text_groups == g].mean())) for g in groups}


@dataclasses.dataclass(frozen=True)
class Test:
    """What everything is measured on: questions by cell, and held-out passages by group."""

    questions: Questions
    text: Documents

    @classmethod
    def load(cls, corpus: Path, tokenizer, config: Evaluate, seed: int) -> "Test":
        """Return the test of a corpus folder, sampled by seed."""
        cells = [f"{g}/{w}" for g in GROUPS for w in (CHOOSING, *WORDINGS)]
        rows = read_lines(corpus / "questions.jsonl")
        questions = ask(tokenizer, sample_questions(rows, cells, config.questions, seed))
        return cls(questions, _thinned(Documents.load(corpus / "heldout"), config.questions, seed))

    def measure(self, sources: Sources) -> Measured:
        """Return what a decoder with its sources makes of the test."""
        positions = np.delete(np.arange(len(self.text.tokens)), self.text.offsets[:-1])
        documents = self.text.document_of[self.text.passage_at(positions)]
        return Measured(
            questions=self.questions,
            grid=sources.grid(self.questions.documents, self.questions.positions),
            text_groups=np.array(self.text.groups)[documents],
            text=sources.grid(self.text, positions),
        )


def choose_lambda(measured: Measured, source: str) -> float:
    """Return the lambda of LAMBDAS with the best mean accuracy over the groups' dev questions."""
    scores = [_curve(measured, source)[f"{g}_{CHOOSING}"] for g in GROUPS]
    return LAMBDAS[int(np.argmax(np.mean(scores, axis=0)))]


def _thinned(documents: Documents, most: int, seed: int) -> Documents:
    """Return at most `most` passages of each group."""
    groups = np.array(documents.groups)[documents.document_of]
    order = np.random.default_rng(seed).permutation(len(documents))
    kept = [p for g in GROUPS for p in order[groups[order] == g][:most]]
    pairs = [(int(documents.document_of[p]), documents.passage(p).tolist()) for p in kept]
    return join_passages(pairs, documents.titles, documents.groups)


def _system(
    name: str, label: str, measured: Measured, lmbda: float, size: int, seconds: float
) -> dict:
    """Return one system's entry of results.json."""
    source = "memory" if name == "lm" else name
    return {
        "name": name,
        "label": label,
        "lmbda": None if name == "lm" else lmbda,
        "accuracy": measured.accuracy(source, lmbda),
        "ppl": measured.perplexity(source, lmbda),
        "bytes": size,
        "train_seconds": seconds,
    }


def _curve(measured: Measured, source: str) -> dict[str, list[float]]:
    """Return accuracy and perplexity over LAMBDAS, by group."""
    curve: dict[str, list[float]] = {"lmbdas": list(LAMBDAS)}
    for lmbda in LAMBDAS:
        for cell, count in measured.accuracy(source, lmbda).items():
            key = cell.replace("/", "_")
            curve.setdefault(key, []).append(count["right"] / max(1, count["n"]))
        for group, value in measured.perplexity(source, lmbda).items():
            curve.setdefault(f"ppl_{group}", []).append(value)
    return curve


def _summary(name: str, label: str, measured: dict, about: dict) -> dict:
    """Return one row of the learn-without-forgetting table."""
    accuracy, ppl = measured["accuracy"], measured["ppl"]
    share = {
        cell.replace("/", "_"): count["right"] / max(1, count["n"])
        for cell, count in accuracy.items()
    }
    known = {k: about.get(k) for k in ("lr", "epochs", "seconds")}
    return {"name": name, "label": label} | known | share | {f"ppl_{g}": p for g, p in ppl.items()}


def _seconds(folder: Path) -> float:
    """Return the seconds a stage took."""
    return finished_manifest(folder)["seconds"]


def load_results(folder: Path) -> dict:
    """Return the results of a finished evaluate stage."""
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))
