"""The decoder over many passages at once: hidden states and logits at the positions asked for."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlpmem.decoder import Decoder
from mlpmem.documents import Documents


class Places(NamedTuple):
    """What the decoder says where some of the positions' tokens are about to come."""

    at: np.ndarray  # (n,) which of the positions asked for
    hidden: Tensor  # (n, D) float32, the key there
    logits: Tensor  # (n, V)


@torch.inference_mode()
def forward_positions(
    decoder: Decoder, documents: Documents, positions: np.ndarray, batch_tokens: int = 4096
) -> Iterator[Places]:
    """Yield Places until every position (an index into documents.tokens) was served once.

    Passages of like length go together, padded on the right, where causal attention never looks.
    """
    passages = documents.passage_at(positions)
    order = np.argsort(np.diff(documents.offsets)[passages], kind="stable")
    order = order[np.argsort(passages[order], kind="stable")]  # positions of a passage together
    needed, starts = np.unique(passages[order], return_index=True)
    members = np.split(order, starts[1:])
    lengths = np.diff(documents.offsets)[needed]
    by_length = np.argsort(lengths, kind="stable")
    while len(by_length):
        longest = lengths[by_length[np.minimum(len(by_length) - 1, batch_tokens // 16)]]
        size = max(1, batch_tokens // int(longest))
        batch, by_length = by_length[:size], by_length[size:]
        yield _one_batch(decoder, documents, positions, needed[batch], [members[b] for b in batch])


def _one_batch(
    decoder: Decoder,
    documents: Documents,
    positions: np.ndarray,
    passages: np.ndarray,
    members: list[np.ndarray],
) -> Places:
    """Return Places of the positions `members` of a few passages."""
    starts = documents.offsets[passages]
    rows = [documents.passage(p) for p in passages]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.from_numpy(row.astype(np.int64))
    output = decoder.forward(ids)
    at = np.concatenate(members)
    row = torch.from_numpy(np.repeat(np.arange(len(rows)), [len(m) for m in members]))
    start = np.repeat(starts, [len(m) for m in members])
    column = torch.from_numpy(positions[at] - start - 1)  # the state before the token itself
    return Places(at, output.hidden[row, column].float(), output.logits[row, column])
