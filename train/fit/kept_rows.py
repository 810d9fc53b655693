"""Rows of what must stay the decoder's: keys, and the decoder's own distributions there.

A memory that learns them beside its facts answers as the decoder does where it was taught nothing.
S tokens of each distribution are kept, the most probable ones.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mlpmem.model.decoder import Decoder
from mlpmem.retrieval.documents import Documents, entries, open_array
from mlpmem.retrieval.passages import forward_positions
from train.fit.context_rows import ContextReader, ContextRows

KEPT = "kept"  # the folder of a corpus and of a datastore
SUPPORT = 64  # tokens of a distribution


def save_kept(folder: Path, decoder: Decoder, documents: Documents) -> None:
    """Write the rows of documents into folder: keys, token ids, probabilities, positions."""
    positions, _ = entries(documents)
    support = min(SUPPORT, decoder.vocab_size)
    keys = np.zeros((len(positions), decoder.hidden_size), np.float16)
    token_ids = np.zeros((len(positions), support), np.int32)
    probs = np.zeros((len(positions), support), np.float16)
    for places in forward_positions(decoder, documents, positions):
        top = places.logits.float().softmax(-1).topk(support)
        keys[places.at] = places.hidden[:, : decoder.hidden_size].half().cpu().numpy()
        token_ids[places.at] = top.indices.cpu().numpy()
        probs[places.at] = (top.values / top.values.sum(-1, keepdim=True)).half().cpu().numpy()
    documents.save(folder)
    arrays = {"keys": keys, "token_ids": token_ids, "probs": probs, "positions": positions}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


class KeptRows:
    """The rows of a finished datastore's folder."""

    def __init__(self, folder: Path, reader: ContextReader | None) -> None:
        """Open the arrays; context vectors are read by the reader."""
        self.documents = Documents.load(folder)
        self.keys, self.token_ids, self.probs, self.positions = (
            open_array(folder / f"{name}.npy")
            for name in ("keys", "token_ids", "probs", "positions")
        )
        self.words = reader and ContextRows(reader, self.documents, self.positions)

    @classmethod
    def of(cls, datastore: Path, reader: ContextReader | None) -> "KeptRows | None":
        """Return the rows of a datastore, None if it has none."""
        folder = datastore / KEPT
        return cls(folder, reader) if folder.is_dir() else None

    def draw(self, count: int, seed: int, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        """Return a process's share of `count` rows drawn by seed, as a batch with alpha 1."""
        at = np.random.default_rng(seed).integers(len(self.positions), size=count)[rank::world]
        keys = torch.from_numpy(self.keys[at].astype(np.float32))
        if self.words is not None:
            keys = torch.cat([keys, self.words.at(at)], 1)
        values = self.documents.tokens[self.positions[at]].astype(np.int64)
        return {
            "keys": keys,
            "targets": torch.from_numpy(values),
            "token_ids": torch.from_numpy(self.token_ids[at].astype(np.int64)),
            "probs": torch.from_numpy(self.probs[at].astype(np.float32)),
            "alpha": torch.ones(len(at)),
        }


def joined_rows(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the rows of two batches as one, supports padded with probability 0."""
    width = max(batch["probs"].shape[1] for batch in (first, second))
    padded = [
        {k: F.pad(v, (0, width - v.shape[1])) if k in ("token_ids", "probs") else v
         for k, v in batch.items()}
        for batch in (first, second)
    ]  # fmt: skip
    return {name: torch.cat([padded[0][name], padded[1][name]]) for name in first}
