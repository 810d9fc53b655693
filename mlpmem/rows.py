"""What every source says at one position, from tensors to the plain values a Step keeps.

Systems with the same history share a row; only the mix and the chosen token are their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from mlpmem.distributions import js_divergence
from mlpmem.fused import Sources, Store
from mlpmem.trace import Candidate, Neighbour, Step, mix

TOP = 8  # candidates of every source, and neighbours shown
PARTED = " ¶ "  # stands for the special tokens between two turns of a passage


@dataclass(frozen=True)
class Row:
    """One position: probabilities of the candidates by source, and the nearest entries."""

    probs: dict[int, dict[str, float]]  # token id -> source -> probability
    rest: dict[str, float]  # of every source, outside the candidates
    js: float | None
    neighbours: list[Neighbour]

    def step(
        self, pieces: Sequence[str], system: str, lmbda: float, index: int, token_id: int, **plain
    ) -> Step:
        """Return the Step of a system that chose token_id here; likeliest candidates first."""
        fused = {i: mix(probs, system, lmbda) for i, probs in self.probs.items()}
        candidates = [
            Candidate(i, pieces[i], {**self.probs[i], "fused": fused[i]})
            for i in sorted(fused, key=lambda i: (-fused[i], i))
        ]
        return Step(
            index=index,
            token_id=token_id,
            probs={**self.probs[token_id], "fused": fused[token_id]},
            candidates=candidates,
            rest={**self.rest, "fused": mix(self.rest, system, lmbda)},
            js=self.js,
            neighbours=self.neighbours,
            **plain,
        )


@torch.inference_mode()
def rows_of(
    decoder: Any, sources: Sources, chosen: Sequence[Sequence[int]], store: Store | None
) -> list[Row]:
    """Return the R rows of sources; chosen[r] are the tokens that systems took there."""
    top = sources.log_probs.topk(min(TOP, sources.log_probs.shape[-1]), dim=-1).indices
    top = top.transpose(0, 1).flatten(1).tolist()  # R lists of S * TOP
    ids = [sorted({*some, *taken}) for some, taken in zip(top, chosen, strict=True)]
    width = max(map(len, ids))
    at = torch.tensor([row + row[-1:] * (width - len(row)) for row in ids])
    at = at.to(sources.log_probs.device).expand(len(sources.names), -1, -1)
    probs = sources.log_probs.gather(-1, at).exp().tolist()  # S lists of R lists
    js = [None] * len(ids)
    if {"memory", "knn"} <= set(sources.names):
        js = js_divergence(sources["memory"], sources["knn"]).tolist()
    near = _neighbours(decoder, sources, store) if store is not None else [[]] * len(ids)
    rows = []
    for r, some in enumerate(ids):
        columns = {name: probs[s][r][: len(some)] for s, name in enumerate(sources.names)}
        rest = {name: max(0.0, 1.0 - sum(column)) for name, column in columns.items()}
        table = {i: {n: c[j] for n, c in columns.items()} for j, i in enumerate(some)}
        rows.append(Row(table, rest, js[r], near[r]))
    return rows


def _neighbours(decoder: Any, sources: Sources, store: Store) -> list[list[Neighbour]]:
    """Return the weightiest neighbours of every row, with their surroundings as text."""
    shown = sources.weights.sort(dim=1, descending=True, stable=True)
    order = shown.indices[:, :TOP]
    entries = sources.neighbours.indices.gather(1, order).tolist()
    distances = sources.neighbours.distances.gather(1, order).tolist()
    weights = shown.values[:, :TOP].tolist()
    return [
        [_neighbour(decoder, store, *near) for near in zip(*row, strict=True) if near[0] >= 0]
        for row in zip(entries, distances, weights, strict=True)
    ]


def _neighbour(decoder: Any, store: Store, entry: int, distance: float, weight: float) -> Neighbour:
    """Return one entry as plain values."""
    context = store.datastore.context(entry)
    return Neighbour(
        entry=entry,
        title=context.title,
        group=context.group,
        left=_text(decoder, context.left).removeprefix(PARTED),
        target=decoder.pieces[context.target],
        target_id=context.target,
        right=_text(decoder, context.right).removesuffix(PARTED),
        distance=distance,
        weight=weight,
    )


def _text(decoder: Any, ids: Sequence[int]) -> str:
    """Return tokens as text, special ones as a mark: what they part must not run together."""
    groups = groupby(ids, key=lambda i: i in decoder.special_ids)
    return "".join(PARTED if special else decoder.decode(list(some)) for special, some in groups)
