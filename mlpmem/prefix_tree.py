"""Passages packed into rows so that a beginning they share is run through the decoder once.

A row holds a tree of prefixes: every token attends to its own ancestors alone and counts its
position along them, so each hidden state is what the passage on its own gives. Short passages in
few wordings share a third of their tokens, and filling rows saves padding besides.
"""

from collections.abc import Sequence

import numpy as np

ROW = 128  # tokens of a row; a longer passage has one to itself

Row = list[tuple[int, np.ndarray]]  # sequences, and where in the row each one's tokens are


def pack(sequences: Sequence[np.ndarray], size: int = ROW) -> list[Row]:
    """Return rows of at most `size` tokens (or one sequence) that hold every sequence once.

    Neighbours in lexical order share the most, so each is laid onto the one before it.
    """
    rows: list[Row] = []
    last, path, used = np.zeros(0, np.int64), np.zeros(0, np.int64), 0
    for i in sorted(range(len(sequences)), key=lambda i: sequences[i].astype(">u4").tobytes()):
        shared = _common(last, sequences[i])
        if not rows or used + len(sequences[i]) - shared > size:
            rows.append([])
            used = shared = 0
        fresh = len(sequences[i]) - shared
        path = np.concatenate([path[:shared], np.arange(used, used + fresh)])
        rows[-1].append((i, path))
        last, used = sequences[i], used + fresh
    return rows


def row_size(row: Row) -> int:
    """Return the number of a row's tokens."""
    return 1 + max((int(path[-1]) for _, path in row if len(path)), default=-1)


def lay_out(
    rows: Sequence[Row], sequences: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return token ids (B, T), positions (B, T) and who attends to whom (B, 1, T, T), bool."""
    width = max(map(row_size, rows))
    ids, positions = np.zeros((2, len(rows), width), np.int64)
    mask = np.zeros((len(rows), 1, width, width), bool)
    mask[:, :, range(width), range(width)] = True  # padding sees itself, which keeps it finite
    for r, row in enumerate(rows):
        for i, path in row:
            ids[r, path] = sequences[i]
            positions[r, path] = np.arange(len(path))
            mask[r, 0, path[:, None], path] |= np.tri(len(path), dtype=bool)
    return ids, positions, mask


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Return how many tokens two sequences begin with alike."""
    length = min(len(a), len(b))
    apart = np.flatnonzero(a[:length] != b[:length])
    return int(apart[0]) if len(apart) else length
