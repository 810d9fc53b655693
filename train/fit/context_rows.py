"""Context vectors of training rows, from their documents' tokens and the decoder's embeddings.

Nothing of them is on disk: they are held in float16 if they fit, else read again for every batch.
What is read has the bits that the decoder gives along a text.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mlpmem.model.context import Context, word_weights
from mlpmem.model.decoder import Decoder
from mlpmem.retrieval.documents import Documents

PASSAGES = 128  # read at once
HELD_BYTES = 2 * 2**30  # of one list of positions, at most
HELD_AT_ONCE = 8192  # positions that are read in float32 on the way
PRIOR, UNSEEN = 30.0, 0.1  # places that a token has beside its own, and their weight


class ContextReader:
    """Reads context vectors at positions of documents."""

    def __init__(self, decoder: Decoder, context: Context) -> None:
        """Take the decoder's embeddings, on the CPU."""
        self.embed = decoder.model.get_input_embeddings()
        self.context = context

    @torch.no_grad()
    def vectors(self, documents: Documents, positions: np.ndarray) -> Tensor:
        """Return the context vectors (R, n D) one token before positions (R,), float32."""
        out: Tensor | None = None
        for at, ids, columns in self._batches(documents, positions):
            rows = torch.from_numpy(ids)
            read = self.context.read(self.embed(rows), rows, None, None)
            found = read[columns]
            if out is None:
                out = torch.empty(len(positions), found.shape[1])
            out[at] = found
        assert out is not None, "context vectors need one position or more"
        return out

    def _batches(
        self, documents: Documents, positions: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[Tensor, Tensor]]]:
        """Yield (indices into positions, token ids (b, T), (row, column) of each).

        What stands before the last question of a chat is left out, as nothing of it is read.
        """
        begins = self._begins(documents, positions)
        columns = positions - 1 - begins
        order = np.argsort(begins, kind="stable")
        for start in range(0, len(order), PASSAGES):
            at = order[start : start + PASSAGES]
            some, rows = np.unique(begins[at], return_inverse=True)
            ids = np.zeros((len(some), int(columns[at].max()) + 1), np.int64)
            for row, first in enumerate(some):
                tokens = documents.tokens[first : first + ids.shape[1]]
                ids[row, : len(tokens)] = tokens
            yield at, ids, (torch.from_numpy(rows), torch.from_numpy(columns[at]))

    def _begins(self, documents: Documents, positions: np.ndarray) -> np.ndarray:
        """Return where the words of each position begin: its passage, or its last question."""
        begins = documents.offsets[documents.passage_at(positions)]
        if not (turn := self.context.turn):
            return begins
        tokens = np.asarray(documents.tokens)
        marks = np.ones(max(0, len(tokens) - len(turn) + 1), bool)
        for i, token in enumerate(turn):
            marks &= tokens[i : i + len(marks)] == token
        places = np.append(np.flatnonzero(marks), len(tokens))  # the last one is behind every text
        last = np.searchsorted(places, positions - len(turn), side="right") - 1
        return np.where(last < 0, begins, np.maximum(begins, places[last]))


class ContextRows:
    """The context vectors of a list of positions, which a run draws from again and again."""

    def __init__(self, reader: ContextReader, documents: Documents, positions: np.ndarray) -> None:
        """Read all of them once if they fit HELD_BYTES, so that no batch waits for its words."""
        self.reader, self.documents, self.positions = reader, documents, positions
        self.held: Tensor | None = None
        size = reader.context.vectors * reader.embed.embedding_dim
        if 2 * size * len(positions) <= HELD_BYTES:
            self.held = torch.empty(len(positions), size, dtype=torch.float16)
            for start in range(0, len(positions), HELD_AT_ONCE):
                at = slice(start, start + HELD_AT_ONCE)
                self.held[at] = reader.vectors(documents, np.asarray(positions[at]))

    def at(self, rows: np.ndarray) -> Tensor:
        """Return the context vectors (R, n D) of rows (R,) of the list, float32."""
        if self.held is not None:
            return self.held[torch.from_numpy(rows)].float()
        return self.reader.vectors(self.documents, np.asarray(self.positions[rows]))


def token_weights(kind: str, decoder: Decoder, documents: Documents) -> Tensor:
    """Return weights (V,) of tokens: "words" alike, or those that "tell" documents apart more.

    "tell": 1 - H / log(D) of a token's n places in D documents, where H is the entropy of its
    shares in them (log-entropy weighting, Dumais 1991). A name of one document weighs 1, a word of
    all of them 0, as a system message does. The n places stand beside PRIOR others of weight
    UNSEEN, so a word of few places weighs little, and one that no document has next to nothing: a
    memory has never learned what it means. Control tokens weigh nothing.
    """
    weights = word_weights(decoder.special_ids, decoder.vocab_size)
    count = len(documents.titles)
    if kind == "words" or count < 2:
        return weights
    of_token = np.repeat(np.asarray(documents.document_of), np.diff(documents.offsets))
    pairs = np.asarray(documents.tokens).astype(np.int64) * count + of_token
    pairs, places = np.unique(pairs, return_counts=True)
    tokens = pairs // count
    total = np.bincount(tokens, places, decoder.vocab_size)
    shares = places / total[tokens]
    entropy = np.bincount(tokens, -shares * np.log(shares), decoder.vocab_size)
    tell = total * (1 - entropy / np.log(count)) + PRIOR * UNSEEN
    return weights * torch.from_numpy(tell / (total + PRIOR)).float()


def with_rivals(own: Tensor, others: Tensor, shares: Tensor, context: Context) -> Tensor:
    """Return context vectors (R, n D) as if other rows' words had been read beside their own.

    A share (R,) of each mean is the other row's. What was asked stays as it is, unless no sentence
    asked, where it is the mean of the longest half-life.
    """
    lives = len(context.half_lives)
    own, others = (vectors.unflatten(1, (context.vectors, -1)) for vectors in (own, others))
    mixed = torch.lerp(own, others, shares[:, None, None])
    if context.ends is not None:
        longest = context.half_lives.index(max(context.half_lives))
        apart = (own[:, lives] != own[:, longest]).any(1)
        mixed[apart, lives] = own[apart, lives]
    return mixed.flatten(1)
