"""Which tokens get worse under the mix? By group and kind, with the worst examples.

Mixing costs a token at most -log(1 - lambda) nats. The cost is spread over very many tokens that
the decoder was certain of, so a token counts as worse only if it loses more than TOLERANCE.
"""

import math
from collections.abc import Iterator

import numpy as np

from mlpmem.model.decoder import Decoder
from mlpmem.retrieval.documents import Documents
from train.files import write_lines
from train.measure.atlas import Grid, MeasuredModel
from train.measure.findings import Finding, mean, share
from train.measure.text import groups_of, units_of
from train.studies.run import Run, pooled

TOLERANCE = 0.1  # nats
EXAMPLES = "worse.jsonl"
FUNCTION_WORDS = frozenset(
    "a about above after again against all also although always am among an and another any are "
    "as at be because been before being below between both but by can could did do does during "
    "each either for from had has have he her here hers him his how i if in into is it its may "
    "me might more most must my neither no nor not of on one only or other our out over per "
    "shall she should since so some such than that the their them then there these they this "
    "those through to too under until up upon us was we were what when where whether which "
    "while who whom whose why will with within without would you your".split()
)


def worse(run: Run) -> Iterator[Finding]:
    """Yield the shares of worse and better tokens, and nats lost and won, by group and kind."""
    documents, positions = run.text()
    grid = MeasuredModel(run.decoder, run.memory, run.store, *run.knn).grid(documents, positions)
    kinds = kinds_of(run.decoder, documents)[positions]
    parts = pooled(groups_of(documents, positions))
    parts |= {kind: kinds == kind for kind in dict.fromkeys(kinds.tolist())}
    before, units = grid.nll("lm", 0.0), units_of(documents, positions)
    for system in ("memory", "knn"):
        rise = grid.nll(system, run.lmbda[system]) - before
        for split, mask in parts.items():
            yield from _part(run, system, split, rise[mask], units[mask])
    folder = run.root / "findings"
    folder.mkdir(exist_ok=True)
    write_lines(folder / EXAMPLES, _examples(run, documents, positions, kinds, grid))


def _part(
    run: Run, system: str, split: str, rise: np.ndarray, units: np.ndarray
) -> Iterator[Finding]:
    """Yield the findings of a split's tokens, whose nll rises by `rise` nats."""
    setting = {"lmbda": run.lmbda[system]}
    yield run.finding(system, split, "worse", share(rise > TOLERANCE), **setting)
    yield run.finding(system, split, "better", share(rise < -TOLERANCE), **setting)
    for metric, nats in (("lost", rise.clip(0)), ("won", -rise.clip(None, 0)), ("change", rise)):
        yield run.finding(system, split, f"nats_{metric}", mean(nats, units), **setting)


def _examples(
    run: Run, documents: Documents, positions: np.ndarray, kinds: np.ndarray, grid: Grid
) -> list[dict]:
    """Return the tokens that lose most under the memory's mix, with title and context."""
    lmbda = run.lmbda["memory"]
    mixed = np.exp(-grid.nll("memory", lmbda))
    order = np.argsort(grid.nll("lm", 0.0) + np.log(mixed), kind="stable")
    rows = []
    for p in order[: run.config.examples]:
        passage = int(documents.passage_at(positions[p]))
        document = int(documents.document_of[passage])
        start, at = int(documents.offsets[passage]), int(positions[p])
        rows.append(
            {
                "title": documents.titles[document],
                "group": documents.groups[document],
                "before": run.decoder.decode(documents.tokens[max(start, at - 32) : at].tolist()),
                "token": run.decoder.pieces[int(documents.tokens[at])],
                "kind": str(kinds[p]),
                "lm": math.exp(-grid.gold_nll["lm"][p]),
                "memory": math.exp(-grid.gold_nll["memory"][p]),
                "fused": float(mixed[p]),
            }
        )
    return rows


def kinds_of(decoder: Decoder, documents: Documents) -> np.ndarray:
    """Return the kind (M,) of each token's word.

    "number" has a digit. "name" begins with a capital inside a sentence. "function word" is in a
    fixed list. Others are "other word", "punctuation" and "end" (special tokens).
    """
    kinds = np.full(len(documents.tokens), "other word", dtype="<U13")
    for p in range(len(documents)):
        first = int(documents.offsets[p])
        begins = True  # a sentence
        for start, end, word in _words(decoder, documents.passage(p).tolist()):
            kinds[first + start : first + end] = kind = _kind(word, begins)
            begins = kind == "end" or word[-1:] in (".", "?", "!")
    return kinds


def _words(decoder: Decoder, ids: list[int]) -> Iterator[tuple[int, int, str]]:
    """Yield (first token, end, text) of the words of a passage; a special token's text is empty."""
    start, text = 0, ""
    for i, token in enumerate(ids):
        special, piece = token in decoder.special_ids, decoder.pieces[token]
        joined = text.isspace() or (text[-1:].isalnum() and piece[:1].isalnum())
        if text and (special or not joined):
            yield start, i, text.strip() or text
            start, text = i, ""
        if special:
            yield i, i + 1, ""
            start = i + 1
        else:
            text += piece
    if text:
        yield start, len(ids), text.strip() or text


def _kind(word: str, begins: bool) -> str:
    """Return the kind of a word; `begins`: whether it begins a sentence."""
    if not word:
        return "end"
    if any(c.isdigit() for c in word):
        return "number"
    if not any(c.isalpha() for c in word):
        return "punctuation"
    if word.lower() in FUNCTION_WORDS:
        return "function word"
    return "name" if word[0].isupper() and not begins else "other word"
