"""From tensors of the sources at a position to the plain values of a Step.

Systems with the same history share a row; each has its own mix and chosen token.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlpmem.engine.distributions import js_divergence, mix_nll
from mlpmem.engine.fused import Sources
from mlpmem.engine.trace import OTHER, PARTS, Candidate, Neighbour, RankedToken, Step, mix
from mlpmem.model.tokenizer import PARTED, passage_text
from mlpmem.retrieval.datastore import Store

TOP = 10  # candidates per source
NEAREST = 8  # neighbours listed


@dataclass(frozen=True)
class Position:
    """The candidates' probabilities by source at one position, and its nearest entries."""

    probs: dict[int, dict[str, float]]  # token id -> source -> probability
    rest: dict[str, float]  # each source's mass outside the candidates
    js: float | None
    neighbours: list[Neighbour]
    unshown: dict[int, float]  # kNN mass of the unlisted neighbours, by candidate
    top: int  # candidates of every source, at least

    def step(
        self, pieces: Sequence[str], system: str, weight: float, index: int, token_id: int, **plain
    ) -> Step:
        """Return the Step of a system that chose token_id at lambda `weight`.

        Candidates are sorted by their mixed probability, the highest first.
        """
        fused = {i: mix(probs, system, weight) for i, probs in self.probs.items()}
        candidates = [
            Candidate(i, pieces[i], {**self.probs[i], "fused": fused[i]})
            for i in sorted(fused, key=lambda i: (-fused[i], i))
        ]
        return Step(
            index=index,
            token_id=token_id,
            probs={**self.probs[token_id], "fused": fused[token_id]},
            candidates=candidates,
            rest={**self.rest, "fused": mix(self.rest, system, weight)},
            js=self.js,
            neighbours=self.neighbours,
            unshown=self.unshown,
            top=self.top,
            **plain,
        )


@torch.inference_mode()
def positions_of(
    decoder: Any,
    sources: Sources,
    chosen: Sequence[Sequence[int]],
    store: Store | None,
    top: int = TOP,
    nearest: int = NEAREST,
) -> list[Position]:
    """Return one Position per row (R) of sources; chosen[r] are the tokens chosen there.

    A row has the `top` candidates of every source, and the `nearest` neighbours.
    """
    best = sources.log_probs.topk(min(top, sources.log_probs.shape[-1]), dim=-1).indices
    best = best.transpose(0, 1).flatten(1).tolist()  # R lists of S * top
    ids = [sorted({*row, *tokens}) for row, tokens in zip(best, chosen, strict=True)]
    width = max(map(len, ids))
    at = torch.tensor([row + row[-1:] * (width - len(row)) for row in ids])
    at = at.to(sources.log_probs.device).expand(len(sources.names), -1, -1)
    probs = sources.log_probs.gather(-1, at).exp().tolist()  # S lists of R lists
    js = [None] * len(ids)
    if {"memory", "knn"} <= set(sources.names):
        js = js_divergence(sources["memory"], sources["knn"]).tolist()
    listed, unshown = [[] for _ in ids], [{} for _ in ids]
    if store is not None:
        listed, unshown = _neighbours(decoder, sources, store, ids, nearest)
    positions = []
    for r, candidates in enumerate(ids):
        columns = {name: probs[s][r][: len(candidates)] for s, name in enumerate(sources.names)}
        rest = {name: max(0.0, 1.0 - sum(column)) for name, column in columns.items()}
        table = {i: {n: c[j] for n, c in columns.items()} for j, i in enumerate(candidates)}
        positions.append(Position(table, rest, js[r], listed[r], unshown[r], top))
    return positions


def _neighbours(
    decoder: Any, sources: Sources, store: Store, ids: list[list[int]], top: int
) -> tuple[list[list[Neighbour]], list[dict[int, float]]]:
    """Return per row the `top` neighbours by weight, and the mass of the others by token."""
    assert sources.weights is not None and sources.neighbours is not None, "nothing was searched"
    weights = sources.weights.sort(dim=1, descending=True, stable=True)
    entries = sources.neighbours.indices.gather(1, weights.indices)
    distances = sources.neighbours.distances.gather(1, weights.indices)
    values = store.values[entries.clamp_min(0)][:, top:].tolist()
    masses_of_rest = weights.values[:, top:].tolist()
    unshown = [
        _by_token(zip(row, masses, strict=True), candidates)
        for row, masses, candidates in zip(values, masses_of_rest, ids, strict=True)
    ]
    columns = (x[:, :top].tolist() for x in (entries, distances, weights.values))
    listed = [
        [_neighbour(decoder, store, *row) for row in zip(*rows, strict=True) if row[0] >= 0]
        for rows in zip(*columns, strict=True)
    ]
    return listed, unshown


def _by_token(masses: Iterable[tuple[int, float]], candidates: list[int]) -> dict[int, float]:
    """Return the sum of masses by candidate, and of all other tokens under OTHER."""
    sums: dict[int, float] = {}
    for token, mass in masses:
        if mass > 0:  # padding has none
            key = token if token in candidates else OTHER
            sums[key] = sums.get(key, 0.0) + mass
    return sums


def _neighbour(decoder: Any, store: Store, entry: int, distance: float, weight: float) -> Neighbour:
    """Return an entry with its surroundings."""
    context = store.datastore.context(entry)
    return Neighbour(
        entry=entry,
        title=context.title,
        group=context.group,
        left=passage_text(decoder, context.left).removeprefix(PARTED),
        target=decoder.pieces[context.target],
        target_id=context.target,
        right=passage_text(decoder, context.right).removesuffix(PARTED),
        distance=distance,
        weight=weight,
    )


def mixed_nll(nll: Mapping[str, Any], system: str, weight: Any) -> Tensor:
    """Return the nll (...) float64 under a system's mix at lambda `weight`, of nlls by source."""
    parts = [nll[part] for part in PARTS[system] or ("lm",)]
    other = mix_nll(*parts, 0.5) if len(parts) == 2 else parts[0]
    return mix_nll(nll["lm"], other, weight)


@torch.inference_mode()
def ranked_tokens(
    sources: Sources,
    system: str,
    fused: Tensor,
    weights: Tensor,
    tokens: Sequence[int],
    most: int,
    rows: Any = slice(None),
) -> list[list[RankedToken]]:
    """Return per row its token, then the `most` likeliest tokens of a system's mix.

    fused (R, V) and weights (R,) are the mix and its lambdas at these rows of sources. Log-probs
    are those of Score.mixed, to the last bit.
    """
    at = torch.tensor(tokens, device=fused.device).unsqueeze(1)
    best = fused.topk(min(most, fused.shape[-1]), dim=-1).indices
    ids = torch.cat([at, best], dim=1)  # (R, 1 + most)
    held = sources.log_probs[:, rows]
    found = -held.gather(-1, ids.expand(len(held), -1, -1)).double().cpu()  # (S, R, 1 + most)
    nll = dict(zip(sources.names, found, strict=True))
    nll["fused"] = mixed_nll(nll, system, weights.double().cpu().unsqueeze(-1))
    values = {name: (0.0 - table).tolist() for name, table in nll.items()}  # never -0.0
    return [
        [
            RankedToken(token, {name: table[r][j] for name, table in values.items()})
            for j, token in enumerate(row)
        ]
        for r, row in enumerate(ids.tolist())
    ]
