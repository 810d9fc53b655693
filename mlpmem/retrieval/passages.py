"""The decoder over many passages at once: hidden states and logits at requested positions.

Keys, question scores and a decoder's nll all come from here.

Passages can be packed into rows, so that the decoder runs a shared beginning only once. A row is a
tree of prefixes: a token attends only to its ancestors and takes its position among them, so its
hidden state equals that of the unpacked passage. In a corpus of few wordings a third of the tokens
is shared, and full rows need less padding.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.retrieval.documents import Documents

ROW = 128  # tokens of a row; a longer passage has its own

Row = list[tuple[int, np.ndarray]]  # (sequence, places of its tokens in the row)


def pack(sequences: Sequence[np.ndarray], size: int = ROW) -> list[Row]:
    """Return rows of at most `size` tokens (or one sequence) that hold every sequence once.

    In lexical order neighbours share the longest prefixes, so each sequence extends the one before.
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
    """Return token ids (B, T), positions (B, T) and the bool attention mask (B, 1, T, T)."""
    width = max(map(row_size, rows))
    ids, positions = np.zeros((2, len(rows), width), np.int64)
    mask = np.zeros((len(rows), 1, width, width), bool)
    mask[:, :, range(width), range(width)] = True  # padding attends to itself, to stay finite
    for r, row in enumerate(rows):
        for i, path in row:
            ids[r, path] = sequences[i]
            positions[r, path] = np.arange(len(path))
            mask[r, 0, path[:, None], path] |= np.tri(len(path), dtype=bool)
    return ids, positions, mask


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Return the length of the common prefix."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


CPU_BATCH, GPU_BATCH = 2048, 32768  # tokens per batch; the first fits a CPU's caches
WORTH = 0.9  # passages are packed if at most this share of the tokens remains


class Places(NamedTuple):
    """The decoder's output one token before some of the requested positions."""

    at: np.ndarray  # (n,) indices into the requested positions
    hidden: Tensor  # (n, D) keys
    logits: Tensor | None  # (n, V), None with head=False
    done: int  # tokens run so far
    total: int  # tokens to run


class Batch(NamedTuple):
    """Passages of similar length that are run together."""

    passages: np.ndarray  # (b,)
    lengths: np.ndarray  # (b,) tokens to run of each, ascending
    members: list[np.ndarray]  # per passage, indices of the requested positions in it


@torch.inference_mode()
def forward_positions(
    decoder: Decoder,
    documents: Documents,
    positions: np.ndarray,
    *,
    head: bool = True,
    batch_tokens: int | None = None,
) -> Iterator[Places]:
    """Yield Places until every position (an index into documents.tokens) was covered once.

    The hidden state is the one a token *before* the position, which predicts its token. With
    head=False there are no logits, and shared beginnings are run once. MlpMemError for a passage
    longer than the decoder can read.
    """
    if batch_tokens is None:
        batch_tokens = CPU_BATCH if decoder.device.type == "cpu" else GPU_BATCH
    batches = plan(documents, positions, batch_tokens)
    longest = max((int(batch.lengths[-1]) for batch in batches), default=0)
    if longest > decoder.max_positions:
        raise MlpMemError(
            f"datastore: a passage must have at most {decoder.max_positions} tokens, which the "
            f"decoder reads; got {longest}. Cut the documents into shorter passages"
        )
    if not head and (rows := _shared(decoder, documents, batches)) is not None:
        yield from _run_shared(decoder, documents, positions, *rows, batch_tokens)
        return
    done, total = 0, sum(int(batch.lengths.sum()) for batch in batches)
    for batch in batches:
        done += int(batch.lengths.sum())
        yield Places(*_run(decoder, documents, positions, batch, head), done, total)


def plan(documents: Documents, positions: np.ndarray, budget: int) -> list[Batch]:
    """Return the batches, each of at most `budget` padded tokens (or one passage).

    A passage is cut after its last requested state; one without positions is not run.
    """
    of_position = documents.passage_at(positions)
    order = np.argsort(of_position, kind="stable")
    passages, starts = np.unique(of_position[order], return_index=True)
    members = np.split(order, starts[1:])
    last = np.array([positions[m].max() for m in members], dtype=np.int64)
    lengths = last - documents.offsets[passages]
    ranks = np.argsort(lengths, kind="stable")
    batches, begin = [], 0
    while begin < len(ranks):
        end = begin + 1
        while end < len(ranks) and (end + 1 - begin) * lengths[ranks[end]] <= budget:
            end += 1
        rows = ranks[begin:end]
        batches.append(Batch(passages[rows], lengths[rows], [members[r] for r in rows]))
        begin = end
    return batches


def _run(
    decoder: Decoder, documents: Documents, positions: np.ndarray, batch: Batch, head: bool
) -> tuple[np.ndarray, Tensor, Tensor | None]:
    """Return (at, hidden, logits) of a batch.

    Padding is on the right, where causal attention never looks, so no mask is needed.
    """
    ids = np.zeros((len(batch.passages), int(batch.lengths[-1])), np.int64)
    for row, (p, length) in enumerate(zip(batch.passages, batch.lengths, strict=True)):
        first = documents.offsets[p]
        ids[row, :length] = documents.tokens[first : first + length]
    at = np.concatenate(batch.members)
    rows = np.repeat(np.arange(len(ids)), [len(m) for m in batch.members])
    columns = positions[at] - 1 - documents.offsets[batch.passages[rows]]
    output = decoder.forward(torch.from_numpy(ids), head=head)
    where = torch.from_numpy(rows), torch.from_numpy(columns)
    logits = None if output.logits is None else output.logits[where]
    return at, output.hidden[where], logits


class Sequences(NamedTuple):
    """Passages cut after their last requested state, in the order of the batches."""

    tokens: list[np.ndarray]
    members: list[np.ndarray]  # per passage, indices of the requested positions in it


def _shared(
    decoder: Decoder, documents: Documents, batches: Sequence[Batch]
) -> tuple[Sequences, list[Row]] | None:
    """Return the passages packed by shared beginnings, None if that saves little or is wrong.

    It is wrong for a decoder with a sliding window or ALiBi, which counts by place in the row.
    """
    if decoder.uses_alibi:
        return None
    tokens, members = [], []
    for batch in batches:
        starts = documents.offsets[batch.passages]
        ends = starts + batch.lengths
        tokens += [documents.tokens[a:b] for a, b in zip(starts, ends, strict=True)]
        members += batch.members
    longest = max(map(len, tokens), default=0)
    if (getattr(decoder.model.config, "sliding_window", None) or longest) < longest:
        return None
    rows = pack(tokens)
    if sum(map(row_size, rows)) > WORTH * sum(map(len, tokens)):
        return None
    return Sequences(tokens, members), sorted(rows, key=row_size)


def _run_shared(
    decoder: Decoder,
    documents: Documents,
    positions: np.ndarray,
    sequences: Sequences,
    rows: list[Row],
    budget: int,
) -> Iterator[Places]:
    """Yield Places, rows of similar size together: at most `budget` padded tokens, or one row."""
    done, total, begin = 0, sum(map(row_size, rows)), 0
    while begin < len(rows):
        end = begin + 1
        while end < len(rows) and (end + 1 - begin) * row_size(rows[end]) <= budget:
            end += 1
        batch, begin = rows[begin:end], end
        arrays = lay_out(batch, sequences.tokens)
        ids, places, mask = (torch.from_numpy(x).to(decoder.device) for x in arrays)
        output = decoder.forward(ids, attention_mask=mask, position_ids=places, head=False)
        at, row_of, column = [], [], []
        for r, row in enumerate(batch):
            for i, path in row:
                members = sequences.members[i]
                starts = documents.offsets[documents.passage_at(positions[members])]
                at.append(members)
                row_of.append(np.full(len(members), r))
                column.append(path[positions[members] - 1 - starts])
        at, row_of, column = (np.concatenate(x) for x in (at, row_of, column))
        done += sum(map(row_size, batch))
        where = torch.from_numpy(row_of), torch.from_numpy(column)
        yield Places(at, output.hidden[where], None, done, total)
