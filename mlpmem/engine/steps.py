"""What every source says at one position, from tensors to the plain values a Step keeps.

Systems with the same history share a row; only the mix and the chosen token are their own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mlpmem.engine.distributions import js_divergence
from mlpmem.engine.fused import Sources
from mlpmem.engine.trace import OTHER, Candidate, Neighbour, Step, mix
from mlpmem.model.tokenizer import PARTED, passage_text
from mlpmem.retrieval.datastore import Store

TOP = 8  # candidates of every source, and neighbours shown


@dataclass(frozen=True)
class Position:
    """One position: probabilities of the candidates by source, and the nearest entries."""

    probs: dict[int, dict[str, float]]  # token id -> source -> probability
    rest: dict[str, float]  # of every source, outside the candidates
    js: float | None
    neighbours: list[Neighbour]
    unshown: dict[int, float]  # kNN mass of the other neighbours, by candidate

    def step(
        self, pieces: Sequence[str], system: str, weight: float, index: int, token_id: int, **plain
    ) -> Step:
        """Return the Step of a system that, at lambda `weight`, chose token_id here.

        Likeliest candidates come first.
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
            **plain,
        )


@torch.inference_mode()
def positions_of(
    decoder: Any,
    sources: Sources,
    chosen: Sequence[Sequence[int]],
    store: Store | None,
    top: int = TOP,
) -> list[Position]:
    """Return the R rows of sources; chosen[r] are the tokens that systems took there.

    top is how many candidates of every source, and how many neighbours, a row keeps.
    """
    best = sources.log_probs.topk(min(top, sources.log_probs.shape[-1]), dim=-1).indices
    best = best.transpose(0, 1).flatten(1).tolist()  # R lists of S * top
    ids = [sorted({*some, *taken}) for some, taken in zip(best, chosen, strict=True)]
    width = max(map(len, ids))
    at = torch.tensor([row + row[-1:] * (width - len(row)) for row in ids])
    at = at.to(sources.log_probs.device).expand(len(sources.names), -1, -1)
    probs = sources.log_probs.gather(-1, at).exp().tolist()  # S lists of R lists
    js = [None] * len(ids)
    if {"memory", "knn"} <= set(sources.names):
        js = js_divergence(sources["memory"], sources["knn"]).tolist()
    near, far = [[] for _ in ids], [{} for _ in ids]
    if store is not None:
        near, far = _neighbours(decoder, sources, store, ids, top)
    rows = []
    for r, some in enumerate(ids):
        columns = {name: probs[s][r][: len(some)] for s, name in enumerate(sources.names)}
        rest = {name: max(0.0, 1.0 - sum(column)) for name, column in columns.items()}
        table = {i: {n: c[j] for n, c in columns.items()} for j, i in enumerate(some)}
        rows.append(Position(table, rest, js[r], near[r], far[r]))
    return rows


def _neighbours(
    decoder: Any, sources: Sources, store: Store, ids: list[list[int]], top: int
) -> tuple[list[list[Neighbour]], list[dict[int, float]]]:
    """Return every row's weightiest neighbours with their surroundings, and the others' mass."""
    assert sources.weights is not None and sources.neighbours is not None, "nothing was searched"
    shown = sources.weights.sort(dim=1, descending=True, stable=True)
    entries = sources.neighbours.indices.gather(1, shown.indices)
    distances = sources.neighbours.distances.gather(1, shown.indices)
    values = store.values[entries.clamp_min(0)][:, top:].tolist()
    far = [
        _by_token(zip(row, masses, strict=True), some)
        for row, masses, some in zip(values, shown.values[:, top:].tolist(), ids, strict=True)
    ]
    listed = (x[:, :top].tolist() for x in (entries, distances, shown.values))
    near = [
        [_neighbour(decoder, store, *one) for one in zip(*row, strict=True) if one[0] >= 0]
        for row in zip(*listed, strict=True)
    ]
    return near, far


def _by_token(masses: Iterable[tuple[int, float]], candidates: list[int]) -> dict[int, float]:
    """Return the sum of masses by token, those of no candidate together."""
    found: dict[int, float] = {}
    for token, mass in masses:
        if mass > 0:  # an absent neighbour has none
            key = token if token in candidates else OTHER
            found[key] = found.get(key, 0.0) + mass
    return found


def _neighbour(decoder: Any, store: Store, entry: int, distance: float, weight: float) -> Neighbour:
    """Return one entry as plain values."""
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
