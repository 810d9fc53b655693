"""Passages packed into rows of fixed length, without attention between them, to save padding.

A packed passage has the same logits as the passage by itself: its positions start at 0, and the
mask restricts attention to the passage.
"""

from dataclasses import dataclass

import numpy as np
import torch

from mlpmem.retrieval.documents import Documents

NO_TARGET = -100  # cross_entropy's ignore_index


@dataclass(frozen=True)
class PackedRows:
    """Rows of packed passages, stored as positions; the tokens stay in the documents."""

    documents: Documents
    length: int  # L, tokens per row
    passages: np.ndarray  # (P,) passage ids, row by row
    columns: np.ndarray  # (P,) first column of each passage in its row
    starts: np.ndarray  # (R + 1,) row r has passages[starts[r]:starts[r + 1]]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.starts) - 1

    def fill(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return ids, segments and positions of rows, (b, L) int64 each; segment 0 is padding."""
        ids, segments, positions = np.zeros((3, len(at), self.length), np.int64)
        for b, row in enumerate(at):
            for i in range(self.starts[row], self.starts[row + 1]):
                p, column = self.passages[i], self.columns[i]
                tokens = self.documents.passage(p)[: self.length]
                inside = slice(column, column + len(tokens))
                ids[b, inside] = tokens
                segments[b, inside] = p + 1
                positions[b, inside] = np.arange(len(tokens))
        return ids, segments, positions

    def batch(self, at: np.ndarray) -> dict[str, torch.Tensor]:
        """Return ids, position_ids, targets (b, L) and attention_mask (b, 1, L, L) of rows.

        Tokens of a passage's prompt are no targets.
        """
        ids, segments, positions = map(torch.from_numpy, self.fill(at))
        same = segments[:, :, None] == segments[:, None, :]
        targets = torch.full_like(ids, NO_TARGET)
        inside = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        if self.documents.prompts is not None:
            prompts = torch.from_numpy(self.documents.prompts.astype(np.int64))
            inside &= positions[:, 1:] >= prompts[segments[:, 1:] - 1]
        targets[:, :-1] = torch.where(inside, ids[:, 1:], NO_TARGET)
        return {
            "ids": ids,
            "position_ids": positions,
            "attention_mask": same.tril()[:, None],
            "targets": targets,
        }


def pack(documents: Documents, length: int, seed: str) -> PackedRows:
    """Return rows of `length` tokens; passages, in seeded order, go to the first row with room.

    Only the last 64 open rows are searched, so packing is linear. A longer passage is truncated.
    """
    order = np.random.default_rng(list(seed.encode())).permutation(len(documents))
    lengths = np.minimum(np.diff(documents.offsets), length)
    open_rows: list[tuple[int, int]] = []  # (row, tokens used)
    placed = np.zeros((len(order), 2), np.int64)  # of each passage: row, column
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
    passages = np.lexsort((placed[:, 1], placed[:, 0]))
    starts = np.searchsorted(placed[passages, 0], np.arange(rows + 1))
    return PackedRows(documents, length, passages, placed[passages, 1], starts)
