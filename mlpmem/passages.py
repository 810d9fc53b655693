"""The decoder over many passages at once: hidden states and logits at the positions asked for.

What makes keys, scores questions and finds a decoder's nll alike. It keeps nothing.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlpmem.decoder import Decoder
from mlpmem.documents import Documents
from mlpmem.errors import MlpMemError

CPU_BATCH, GPU_BATCH = 2048, 32768  # tokens a batch; the first fits a CPU's caches


class Places(NamedTuple):
    """What the decoder knows where some of the positions' tokens are about to come."""

    at: np.ndarray  # (n,) which of the positions asked for
    hidden: Tensor  # (n, D), the key there
    logits: Tensor | None  # (n, V), None with head=False
    done: int  # tokens run so far
    total: int  # tokens to run


class Batch(NamedTuple):
    """Passages of like length that are run together."""

    passages: np.ndarray  # (b,)
    lengths: np.ndarray  # (b,) tokens of each that are needed, the longest last
    members: list[np.ndarray]  # of each, which of the positions asked for lie in it


@torch.inference_mode()
def forward_positions(
    decoder: Decoder,
    documents: Documents,
    positions: np.ndarray,
    *,
    head: bool = True,
    batch_tokens: int | None = None,
) -> Iterator[Places]:
    """Yield Places until every position (an index into documents.tokens) was served once.

    What is given is the state one token *before* a position, which is where its token is decided.
    MlpMemError for a passage longer than the decoder can read.
    """
    if batch_tokens is None:
        batch_tokens = CPU_BATCH if decoder.device.type == "cpu" else GPU_BATCH
    batches = plan(documents, positions, batch_tokens)
    longest = max((int(batch.lengths[-1]) for batch in batches), default=0)
    if longest > decoder.max_positions:
        raise MlpMemError(
            f"datastore: a passage has {longest} tokens, more than the {decoder.max_positions} the "
            "decoder reads; cut the documents into shorter passages"
        )
    done, total = 0, sum(int(batch.lengths.sum()) for batch in batches)
    for batch in batches:
        done += int(batch.lengths.sum())
        yield Places(*_run(decoder, documents, positions, batch, head), done, total)


def plan(documents: Documents, positions: np.ndarray, budget: int) -> list[Batch]:
    """Return the batches, each of at most `budget` padded tokens (or one passage).

    A passage is cut after its last needed state; one without positions is not run at all.
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

    Padding stands on the right, where causal attention never looks, so no mask is needed.
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
    return at, output.hidden[where], output.logits[where] if head else None
