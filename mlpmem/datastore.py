"""The datastore: for every entry a key (hidden state), a value (next token) and where it stands.

Keys follow from decoder and documents and may be built anew (`build_keys`); searching them is the
retriever's part.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlpmem.documents import Documents
from mlpmem.errors import MlpMemError


@dataclass(frozen=True)
class Context:
    """The surroundings of an entry's value, within its passage."""

    left: list[int]  # token ids before the value
    target: int  # the value
    right: list[int]  # token ids after it
    title: str
    group: str


@dataclass(frozen=True)
class Datastore:
    """N entries over documents; an entry's key is the hidden state one token before its value."""

    keys: np.ndarray  # (N, D) float16, an array or a memmap
    positions: np.ndarray  # (N,) int64, index of the value in documents.tokens
    counts: np.ndarray  # (N,) int32, how many copies the entry stands for
    documents: Documents

    def __post_init__(self) -> None:
        """Raise MlpMemError where the arrays differ in length."""
        if not len(self.keys) == len(self.positions) == len(self.counts):
            raise MlpMemError(
                f"datastore: {len(self.keys)} keys, {len(self.positions)} positions and "
                f"{len(self.counts)} counts; they must be as many, build the keys again"
            )

    def __len__(self) -> int:
        """Return N."""
        return len(self.positions)

    @cached_property
    def values(self) -> np.ndarray:
        """Return the token id of every entry, (N,) int32."""
        return self.documents.tokens[self.positions].astype(np.int32)

    @property
    def bytes(self) -> int:
        """Return the size of keys, values, positions, counts and tokens."""
        arrays = (self.keys, self.values, self.positions, self.counts, self.documents.tokens)
        return sum(array.nbytes for array in arrays)

    def context(self, i: int, before: int = 24, after: int = 8) -> Context:
        """Return the surroundings of entry i; they never leave its passage."""
        documents, at = self.documents, int(self.positions[i])
        p = int(documents.passage_at(np.int64(at)))
        first, end = int(documents.offsets[p]), int(documents.offsets[p + 1])
        document = int(documents.document_of[p])
        return Context(
            left=documents.tokens[max(first, at - before) : at].tolist(),
            target=int(documents.tokens[at]),
            right=documents.tokens[at + 1 : min(end, at + 1 + after)].tolist(),
            title=documents.titles[document],
            group=documents.groups[document],
        )

    def save(self, folder: str | Path) -> None:
        """Write keys.npy, positions.npy, counts.npy and documents/ into folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("keys", "positions", "counts"):
            np.save(folder / f"{name}.npy", getattr(self, name))
        self.documents.save(folder / "documents")

    @classmethod
    def load(cls, folder: str | Path) -> "Datastore":
        """Return the datastore of a folder, its keys mapped from disk."""
        folder = Path(folder)
        try:
            keys = np.load(folder / "keys.npy", mmap_mode="r", allow_pickle=False)
            positions = np.load(folder / "positions.npy", allow_pickle=False)
            counts = np.load(folder / "counts.npy", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise MlpMemError(
                f"datastore: cannot read {folder.name} ({error}); build or download it again"
            ) from error
        return cls(keys, positions, counts, Documents.load(folder / "documents"))


def build_keys(
    decoder: Any,
    documents: Documents,
    positions: np.ndarray,
    out: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
    batch_tokens: int | None = None,
    stop: Callable[[], bool] | None = None,
    dtype: np.dtype | type = np.float16,
) -> np.ndarray:
    """Return the keys of entries, (N, D) in dtype: hidden states one token before `positions`.

    Written into `out` if given (an array or memmap). progress(done, total) counts tokens run;
    stop() is asked before every batch, and a yes raises MlpMemError. By default a batch is 2,048
    tokens on a CPU, whose caches it then fits, and 32,768 elsewhere.
    """
    if batch_tokens is None:
        batch_tokens = 2048 if decoder.device.type == "cpu" else 32768
    if out is None:
        out = np.empty((len(positions), decoder.hidden_size), dtype)
    batches, total = _batches(documents, positions, batch_tokens)
    _check_lengths(decoder, batches)
    done = 0
    for passages, lengths, entries_of in batches:
        if stop is not None and stop():
            raise MlpMemError("building the keys was stopped; start it again when wanted")
        out[np.concatenate(entries_of)] = _hidden(
            decoder, documents, positions, passages, lengths, entries_of
        )
        done += int(lengths.sum())
        if progress is not None:
            progress(done, total)
    return out


def _batches(documents: Documents, positions: np.ndarray, budget: int) -> tuple[list, int]:
    """Return batches of (passages, lengths, entries of each passage), and all their tokens.

    Passages are cut after their last key, sorted by length and padded together; one without
    entries is not run at all.
    """
    of_entry = documents.passage_at(positions)
    order = np.argsort(of_entry, kind="stable")
    passages, starts = np.unique(of_entry[order], return_index=True)
    groups = np.split(order, starts[1:])
    last = np.array([positions[group].max() for group in groups], dtype=np.int64)
    lengths = last - documents.offsets[passages]  # the key is one token before the value
    ranks = np.argsort(lengths, kind="stable")
    batches, begin = [], 0
    while begin < len(ranks):
        end = begin + 1
        while end < len(ranks) and (end + 1 - begin) * lengths[ranks[end]] <= budget:
            end += 1
        rows = ranks[begin:end]
        batches.append((passages[rows], lengths[rows], [groups[r] for r in rows]))
        begin = end
    return batches, int(lengths.sum())


def _hidden(
    decoder: Any,
    documents: Documents,
    positions: np.ndarray,
    passages: np.ndarray,
    lengths: np.ndarray,
    entries_of: list[np.ndarray],
) -> np.ndarray:
    """Return the hidden states (n, D) of a batch's entries, passage after passage.

    Padding stands on the right, where causal attention never looks, so no mask is needed.
    """
    ids = np.zeros((len(passages), int(lengths[-1])), np.int64)
    for row, (p, length) in enumerate(zip(passages, lengths, strict=True)):
        first = documents.offsets[p]
        ids[row, :length] = documents.tokens[first : first + length]
    rows = np.repeat(np.arange(len(passages)), [len(e) for e in entries_of])
    columns = positions[np.concatenate(entries_of)] - 1 - documents.offsets[passages[rows]]
    hidden = decoder.forward(torch.from_numpy(ids), head=False).hidden
    kept = hidden[torch.from_numpy(rows), torch.from_numpy(columns)].float().cpu().numpy()
    if not np.isfinite(kept).all() or np.abs(kept).max(initial=0.0) > np.finfo(np.float16).max:
        raise MlpMemError(
            "datastore: a hidden state is not finite in half precision; this decoder cannot be "
            "keyed in float16 at this depth, try another depth"
        )
    return kept


def _check_lengths(decoder: Any, batches: list) -> None:
    """Raise MlpMemError for a passage longer than the decoder can read."""
    longest = max((int(lengths[-1]) for _, lengths, _ in batches), default=0)
    if longest > decoder.max_positions:
        raise MlpMemError(
            f"datastore: a passage has {longest} tokens, more than the {decoder.max_positions} the "
            "decoder reads; cut the documents into shorter passages"
        )
