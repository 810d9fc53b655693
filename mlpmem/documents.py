"""Tokenised documents and the entries a datastore makes of them; text and models stay outside.

A *document* (an entity, an article) has a title and a group and consists of *passages*. A passage
is keyed on its own: attention never leaves it. P passages, M tokens, N datastore entries.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlpmem.errors import MlpMemError

HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Documents:
    """Tokens of all passages, end to end, and where each passage and document begins."""

    tokens: np.ndarray  # (M,) token ids
    offsets: np.ndarray  # (P + 1,) int64, passage p is tokens[offsets[p]:offsets[p + 1]]
    document_of: np.ndarray  # (P,) int32, index into titles
    titles: list[str]
    groups: list[str]  # of each document: "A1", "A2", "B" or "text"

    def __post_init__(self) -> None:
        """Raise MlpMemError where the arrays contradict one another."""
        offsets, passages = self.offsets, len(self.document_of)
        ordered = (
            len(offsets) == passages + 1 and offsets[0] == 0 and bool(np.all(np.diff(offsets) > 0))
        )
        if passages and (not ordered or offsets[-1] != len(self.tokens)):
            raise MlpMemError(
                f"documents: {len(offsets)} offsets do not cut {len(self.tokens)} tokens into "
                f"{passages} passages; the folder is damaged, make or download it again"
            )
        if len(self.titles) != len(self.groups) or (
            passages and int(self.document_of.max()) >= len(self.titles)
        ):
            raise MlpMemError(
                "documents: titles and groups do not match the passages; make it again"
            )

    def __len__(self) -> int:
        """Return the number of passages."""
        return len(self.document_of)

    def passage(self, p: int) -> np.ndarray:
        """Return the token ids of passage p."""
        return self.tokens[self.offsets[p] : self.offsets[p + 1]]

    def passage_at(self, positions: np.ndarray) -> np.ndarray:
        """Return the passage that holds each token position."""
        return np.searchsorted(self.offsets, positions, side="right") - 1

    def save(self, folder: str | Path) -> None:
        """Write the arrays (.npy) and names (.json) into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        small = self.tokens.max(initial=0) < 2**16
        np.save(folder / "tokens.npy", self.tokens.astype(np.uint16 if small else np.int32))
        np.save(folder / "offsets.npy", self.offsets.astype(np.int64))
        np.save(folder / "document_of.npy", self.document_of.astype(np.int32))
        for name in ("titles", "groups"):
            (folder / f"{name}.json").write_text(
                json.dumps(getattr(self, name), ensure_ascii=False), encoding="utf-8"
            )

    @classmethod
    def load(cls, folder: str | Path) -> "Documents":
        """Return the documents of a folder, checked; the arrays are mapped from disk."""
        folder = Path(folder)
        try:
            arrays = [
                np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in ("tokens", "offsets", "document_of")
            ]
            names = [
                json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
                for name in ("titles", "groups")
            ]
        except (OSError, ValueError) as error:
            raise MlpMemError(
                f"documents: cannot read {folder.name} ({error}); make or download the folder again"
            ) from error
        return cls(*arrays, *names)


def join_passages(
    passages: list[tuple[int, list[int]]], titles: list[str], groups: list[str]
) -> Documents:
    """Return Documents of (document index, token ids) pairs, in their order."""
    lengths = np.array([len(ids) for _, ids in passages], dtype=np.int64)
    return Documents(
        tokens=np.fromiter((i for _, ids in passages for i in ids), np.int32, int(lengths.sum())),
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        document_of=np.array([d for d, _ in passages], dtype=np.int32),
        titles=titles,
        groups=groups,
    )


def entries(documents: Documents) -> tuple[np.ndarray, np.ndarray]:
    """Return (positions (N,) int64, counts (N,) int32): one entry a distinct (prefix, next token).

    A position is the index in `tokens` of the entry's *value*; its key is the hidden state one
    token earlier. Equal prefixes have equal keys, so copies are counted rather than stored: the
    kNN distribution is the same and the datastore smaller. Prefixes are compared by a 64-bit
    rolling hash of passage tokens; among 10^7 prefixes a collision has odds below 1 in 10^5.
    """
    lengths = np.diff(documents.offsets)
    rows = np.argsort(-lengths, kind="stable")
    tokens = documents.tokens.astype(np.uint64)
    hashes = np.zeros(len(tokens), np.uint64)
    state = np.zeros(len(rows), np.uint64)
    for column in range(int(lengths.max(initial=0))):
        alive = int(np.searchsorted(-lengths[rows], -column, side="left"))
        at = documents.offsets[rows[:alive]] + column
        state[:alive] = _mix(state[:alive] * HASH_MULTIPLIER + tokens[at] + np.uint64(1))
        hashes[at] = state[:alive]
    valued = np.ones(len(tokens), bool)
    valued[documents.offsets[:-1]] = False  # a passage's first token has no key before it
    positions = np.flatnonzero(valued)
    _, first, counts = np.unique(hashes[positions], return_index=True, return_counts=True)
    order = np.argsort(first)
    return positions[first[order]], counts[order].astype(np.int32)


def _mix(x: np.ndarray) -> np.ndarray:
    """Return x with its bits stirred (the finaliser of splitmix64), uint64 in, uint64 out."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
