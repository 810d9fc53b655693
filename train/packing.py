"""Passages packed into rows of fixed length, none attending to another: a row wastes little.

A packed passage gives the same logits as one alone: its positions start at 0 and the mask keeps
every token inside its own passage.
"""

from dataclasses import dataclass

import numpy as np
import torch

from mlpmem.documents import Documents

NO_TARGET = -100  # cross_entropy's ignore_index


@dataclass(frozen=True)
class Rows:
    """Packed passages: (R, L) arrays, where segment 0 is padding."""

    ids: np.ndarray
    segments: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.ids)

    def batch(self, at: np.ndarray) -> dict[str, torch.Tensor]:
        """Return ids, position_ids, targets (b, L) and attention_mask (b, 1, L, L) of rows."""
        ids = torch.from_numpy(self.ids[at].astype(np.int64))
        segments = torch.from_numpy(self.segments[at])
        same = segments[:, :, None] == segments[:, None, :]
        targets = torch.full_like(ids, NO_TARGET)
        inside = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        targets[:, :-1] = torch.where(inside, ids[:, 1:], NO_TARGET)
        return {
            "ids": ids,
            "position_ids": torch.from_numpy(self.positions[at].astype(np.int64)),
            "attention_mask": same.tril()[:, None],
            "targets": targets,
        }


def pack(documents: Documents, length: int, seed: str) -> Rows:
    """Return rows of `length` tokens, passages in seeded order, each placed where it first fits.

    Only the last 64 open rows are looked at, so packing is linear; a longer passage is cut.
    """
    order = np.random.default_rng(list(seed.encode())).permutation(len(documents))
    lengths = np.minimum(np.diff(documents.offsets), length)
    open_rows: list[tuple[int, int]] = []  # (row, tokens used)
    placed = np.zeros((len(order), 2), np.int64)
    rows = 0
    for p in order:
        for i, (row, used) in enumerate(open_rows):
            if used + lengths[p] <= length:
                placed[p] = row, used
                open_rows[i] = row, used + lengths[p]
                break
        else:
            placed[p] = rows, 0
            open_rows = [*open_rows[-63:], (rows, lengths[p])]
            rows += 1
    return _fill(documents, placed, lengths, (rows, length))


def _fill(
    documents: Documents, placed: np.ndarray, lengths: np.ndarray, shape: tuple[int, int]
) -> Rows:
    """Return Rows with every passage written at its (row, column)."""
    ids, segments, positions = (np.zeros(shape, np.int32) for _ in range(3))
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    source = np.repeat(documents.offsets[:-1], lengths) + within
    row = np.repeat(placed[:, 0], lengths)
    column = np.repeat(placed[:, 1], lengths) + within
    ids[row, column] = documents.tokens[source]
    segments[row, column] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    positions[row, column] = within
    return Rows(ids, segments, positions)
