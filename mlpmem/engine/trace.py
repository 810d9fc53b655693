"""A generation as plain values, for the page, exports and recordings.

Every step has every source's probability of the union of the sources' top candidates, so any lambda
can be mixed afterwards, exactly, without the model. There are no tensors and no HTML here.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlpmem.errors import MlpMemError
from mlpmem.formats import parse_json

SOURCES = ("lm", "memory", "knn")
# Sources a system mixes into the decoder, in equal shares; by default the one of its name.
PARTS = {"lm": (), "memory": ("memory",), "knn": ("knn",), "mixed": ("memory", "knn")}
AUTO = "auto"  # lambda chosen by a router for every token
VERSION = 1
OTHER = -1  # key in Step.unshown for all tokens that are not candidates


@dataclass(frozen=True)
class Candidate:
    """A possible next token; probs has its probability by each source and "fused"."""

    token_id: int
    text: str
    probs: Mapping[str, float]


@dataclass(frozen=True)
class RankedToken:
    """A token with its log-probs in nats: by the mix, as "fused", and by every source."""

    token_id: int
    log_probs: Mapping[str, float]


@dataclass(frozen=True)
class Neighbour:
    """A datastore entry near the hidden state; weight is its share of the kNN mass, 0 to 1."""

    entry: int
    title: str
    group: str
    left: str
    target: str
    target_id: int
    right: str
    distance: float  # squared L2
    weight: float


@dataclass(frozen=True)
class Step:
    """One token, with every source's probabilities at its position.

    unshown is the kNN mass of the neighbours that are not listed, by their value. With it the kNN
    distribution without any listed neighbour can be computed exactly.
    """

    index: int
    token_id: int
    text: str
    probs: Mapping[str, float]  # of the chosen token
    candidates: list[Candidate]
    rest: Mapping[str, float]  # each source's mass outside the candidates
    js: float | None  # Jensen-Shannon divergence of memory and knn, nats
    neighbours: list[Neighbour]
    ms: float  # wall time of the step's batch
    unshown: Mapping[int, float] = field(default_factory=dict)  # see OTHER
    lmbda: float | None = None  # this token's, if the trace's is AUTO
    top: int | None = None  # candidates of every source, at least; None in older recordings
    ranked: Sequence[RankedToken] = ()  # the token, then the mix's likeliest; never saved

    def to_dict(self) -> dict:
        """Return the form for the browser, with short keys."""
        own = {} if self.lmbda is None else {"lmbda": _short(self.lmbda)}
        own |= {} if self.top is None else {"top": self.top}
        return {
            **own,
            "i": self.index,
            "id": self.token_id,
            "s": self.text,
            "p": {name: _short(p) for name, p in self.probs.items()},
            "cand": [
                [c.token_id, c.text, *(_short(c.probs.get(s)) for s in SOURCES)]
                for c in self.candidates
            ],
            "rest": {name: _short(p) for name, p in self.rest.items()},
            "js": _short(self.js),
            "nn": [
                [n.entry, n.title, n.group, n.left, n.target, n.target_id, n.right]
                + [_short(n.distance), _short(n.weight)]
                for n in self.neighbours
            ],
            "ms": _short(self.ms),
            "far": [[i, _short(mass)] for i, mass in self.unshown.items()],
        }

    @classmethod
    def from_dict(cls, row: dict, system: str, lmbda: float | str) -> "Step":
        """Return the step of a `to_dict` form; "fused" is mixed at the step's lambda, if any."""
        own = row.get("lmbda")
        weight = float(lmbda if own is None else own)
        candidates = []
        for token_id, text, *values in row["cand"]:
            probs = {s: p for s, p in zip(SOURCES, values, strict=True) if p is not None}
            candidates.append(
                Candidate(token_id, text, {**probs, "fused": mix(probs, system, weight)})
            )
        return cls(
            index=row["i"],
            token_id=row["id"],
            text=row["s"],
            probs=row["p"],
            candidates=candidates,
            rest=row["rest"],
            js=row["js"],
            neighbours=[Neighbour(*n) for n in row["nn"]],
            ms=row["ms"],
            unshown={i: mass for i, mass in row.get("far", ())},  # absent in older recordings
            lmbda=own,
            top=row.get("top"),
        )


@dataclass(frozen=True)
class Trace:
    """A complete generation of one system."""

    system: str
    prompt: str
    prompt_ids: list[int]
    lmbda: float | str  # AUTO if every step has its own
    settings: Mapping[
        str, Any
    ]  # numbers, ids of forced tokens, and the prompt after passages (rag.py)
    model: Mapping[str, str]
    steps: list[Step]
    finish: str  # "eos", "length", "stop_string", "stop" (cancelled) or "end" (scored)
    text: str  # the generated tokens decoded together, without special tokens
    cost: Mapping[str, float] = field(default_factory=dict)  # ms per token and bytes, by part

    def to_dict(self) -> dict:
        """Return JSON-ready values."""
        return {
            "v": VERSION,
            **{name: getattr(self, name) for name in _PLAIN},
            "steps": [step.to_dict() for step in self.steps],
        }

    def to_json(self) -> str:
        """Return the trace as one JSON object."""
        return json.dumps(self.to_dict(), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_dict(cls, row: dict) -> "Trace":
        """Return the trace of a `to_dict` form; MlpMemError if it is not one."""
        if not isinstance(row, dict) or row.get("v") != VERSION:
            raise MlpMemError(
                f"trace: must be an object with v = {VERSION}; export the generation again"
            )
        try:
            plain = {name: row[name] for name in _PLAIN}
            steps = [Step.from_dict(s, row["system"], row["lmbda"]) for s in row["steps"]]
            trace = cls(**plain, steps=steps)
            trace.to_dict()  # a trace must be writable again
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise MlpMemError(
                f"trace: a field is missing or wrong ({error!r}); export the generation again"
            ) from error
        return trace

    @classmethod
    def from_json(cls, text: str) -> "Trace":
        """Return the trace of a `to_json` text; MlpMemError if it is not one."""
        try:
            row = parse_json(text)
        except ValueError as error:
            raise MlpMemError(
                f"trace: must be JSON ({error}); export the generation again"
            ) from error
        return cls.from_dict(row)


_PLAIN = ("system", "prompt", "prompt_ids", "lmbda", "settings", "model", "finish", "text", "cost")


def mix(probs: Mapping[str, float], system: str, lmbda: float) -> float:
    """Return (1 - lmbda) * p_lm + lmbda * p_system, or p_lm if system is "lm" or absent."""
    parts = PARTS.get(system, (system,))
    if len(parts) == 1:  # of every candidate of a step: quickly
        other = probs.get(parts[0])
        return probs["lm"] if other is None else (1.0 - lmbda) * probs["lm"] + lmbda * other
    if not parts or not probs.keys() >= set(parts):
        return probs["lm"]
    return (1.0 - lmbda) * probs["lm"] + lmbda * sum(probs[part] for part in parts) / len(parts)


def _short(value: float | None) -> float | None:
    """Return value with six significant digits, for small JSON; mixes stay exact to 1e-6."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")


def shared_steps(traces: list[dict]) -> list[dict]:
    """Return the traces without steps that they share with an earlier one.

    "like" is the index of an earlier trace, "kept" the number of its first steps that the trace
    shares; "steps" has the rest. Neighbouring lambdas give similar texts, and a step is large.
    """
    compact = []
    for trace in traces:
        ids = [step["id"] for step in trace["steps"]]
        pairs = ((_common(ids, traces[i]), -i) for i in range(len(compact)))
        kept, like = max(pairs, default=(0, 0))
        compact.append(trace | {"like": -like, "kept": kept, "steps": trace["steps"][kept:]})
    return compact


def _common(ids: list[int], trace: dict) -> int:
    """Return the number of first tokens that a trace shares with ids."""
    for n, (a, step) in enumerate(zip(ids, trace["steps"], strict=False)):
        if a != step["id"]:
            return n
    return min(len(ids), len(trace["steps"]))
