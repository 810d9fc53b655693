"""The datastore: one key (hidden state), value (next token) and position per entry.

Keys depend only on decoder and documents; `build_keys` computes them. A retriever searches them.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlpmem.errors import MlpMemError
from mlpmem.retrieval.documents import Documents, entries, open_array
from mlpmem.retrieval.own.search import TextSearch
from mlpmem.retrieval.own.sentences import answer_head, form_ids, keyed, units_of
from mlpmem.retrieval.own.words import Words, vocabulary_of
from mlpmem.retrieval.passages import forward_positions
from mlpmem.retrieval.retriever import Neighbours, Retriever, make_retriever
from mlpmem.retrieval.shards import ShardedKeys, open_keys, write_index, write_shard
from mlpmem.retrieval.texts import cut_text


@dataclass(frozen=True)
class EntryContext:
    """The tokens around an entry's value, within its passage."""

    left: list[int]  # token ids before the value
    target: int  # the value
    right: list[int]  # token ids after it
    title: str
    group: str


@dataclass(frozen=True)
class Datastore:
    """N entries over documents; an entry's key is the hidden state one token before its value."""

    keys: np.ndarray | ShardedKeys  # (N, D) float16, in memory or mapped from disk
    positions: np.ndarray  # (N,) int64, index of the value in documents.tokens
    counts: np.ndarray  # (N,) int32, how many equal entries this one represents
    documents: Documents

    def __post_init__(self) -> None:
        """Raise MlpMemError if the arrays differ in length."""
        if not len(self.keys) == len(self.positions) == len(self.counts):
            raise MlpMemError(
                "datastore: keys, positions and counts must have one length; got "
                f"{len(self.keys)}, {len(self.positions)} and {len(self.counts)}. Build the "
                "keys again"
            )

    def __len__(self) -> int:
        """Return N."""
        return len(self.positions)

    @cached_property
    def values(self) -> np.ndarray:
        """Return the token id of every entry, (N,) int32, computed once."""
        return self.values_of(slice(None))

    def values_of(self, entries: np.ndarray | slice) -> np.ndarray:
        """Return the token ids of some entries, int32 in their shape; only these are read."""
        return self.documents.tokens[self.positions[entries]].astype(np.int32)

    @property
    def bytes(self) -> int:
        """Return the size of keys, values, positions, counts and tokens."""
        arrays = (self.keys, self.values, self.positions, self.counts, self.documents.tokens)
        return sum(array.nbytes for array in arrays)

    def context(self, i: int, before: int = 24, after: int = 8) -> EntryContext:
        """Return the tokens around entry i, only those of its passage."""
        documents, at = self.documents, int(self.positions[i])
        p = int(documents.passage_at(np.array([at]))[0])
        first, end = int(documents.offsets[p]), int(documents.offsets[p + 1])
        document = int(documents.document_of[p])
        return EntryContext(
            left=documents.tokens[max(first, at - before) : at].tolist(),
            target=int(documents.tokens[at]),
            right=documents.tokens[at + 1 : min(end, at + 1 + after)].tolist(),
            title=documents.titles[document],
            group=documents.groups[document],
        )

    def save(self, folder: str | Path) -> None:
        """Write keys (one shard), positions.npy, counts.npy and documents/ into folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_index(folder, self.keys.shape[1], [write_shard(folder, 0, np.asarray(self.keys))])
        save_entries(folder, self.positions, self.counts)
        self.documents.save(folder / "documents")

    @classmethod
    def load(cls, folder: str | Path) -> "Datastore":
        """Return the datastore of a folder: keys, positions and counts mapped from disk."""
        folder = Path(folder)
        keys = open_keys(folder)
        try:
            positions, counts = (
                open_array(folder / f"{name}.npy") for name in ("positions", "counts")
            )
        except (OSError, ValueError) as error:
            raise MlpMemError(
                f"datastore: cannot read {folder.name} ({error}); build or download it again"
            ) from error
        return cls(keys, positions, counts, Documents.load(folder / "documents"))


def save_entries(folder: Path, positions: np.ndarray, counts: np.ndarray) -> None:
    """Write positions.npy and counts.npy into a folder."""
    np.save(folder / "positions.npy", positions)
    np.save(folder / "counts.npy", counts)


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

    `out`, an array or memmap, takes the keys if given. progress(done, total) counts tokens run.
    stop() is checked after every batch; raises MlpMemError if it returns True. By default a batch
    is 2,048 tokens on a CPU, which fits its caches, and 32,768 elsewhere.
    """
    if out is None:
        out = np.empty((len(positions), decoder.hidden_size), dtype)
    for places in forward_positions(
        decoder, documents, positions, head=False, batch_tokens=batch_tokens
    ):
        if stop is not None and stop():
            raise MlpMemError("building the keys was stopped; start it again to get them")
        out[places.at] = _checked(places.hidden[:, : out.shape[1]])
        if progress is not None:
            progress(places.done, places.total)
    return out


def _checked(hidden: torch.Tensor) -> np.ndarray:
    """Return hidden states (n, D) as a float32 array; MlpMemError if float16 cannot hold one."""
    keys = hidden.float().cpu().numpy()
    if not np.isfinite(keys).all() or np.abs(keys).max(initial=0.0) > np.finfo(np.float16).max:
        raise MlpMemError(
            "datastore: hidden states must be finite in half precision; at this depth some are "
            "not. Choose another depth"
        )
    return keys


class Store(NamedTuple):
    """A datastore with its retriever, and values and counts on the decoder's device."""

    datastore: Datastore
    retriever: Retriever
    values: Tensor  # (N,) int64
    counts: Tensor  # (N,) int32
    texts: TextSearch | None = None  # how a person's own texts are searched
    gate: Any = None  # the engine's Router for them

    def search(
        self, hidden: Tensor, k: int, read: Sequence[Sequence[int]] | None = None
    ) -> tuple[Neighbours, Tensor | None]:
        """Return the k nearest entries of hidden states (R, K), and what a gate reads of them.

        Keys have the first D numbers of a state. `read` has the token ids that each row has read;
        without them own texts are searched by state alone, and their gate knows it.
        """
        queries = hidden[:, : self.datastore.keys.shape[1]]
        if self.texts is not None:
            return self.texts.search(queries, [()] * len(queries) if read is None else read, k)
        return self.retriever.search(queries, k), None

    @property
    def bytes(self) -> int:
        """Return the size of entries and index; keys in both are counted once."""
        twice = self.datastore.keys.nbytes if self.retriever.holds_keys else 0
        return self.datastore.bytes + self.retriever.bytes - twice


def make_store(decoder: Any, datastore: Datastore, retriever: Retriever) -> Store:
    """Return the store of a decoder's datastore; MlpMemError for keys of another decoder."""
    if datastore.keys.shape[1] != decoder.hidden_size:
        raise MlpMemError(
            f"datastore: keys must have this decoder's hidden size {decoder.hidden_size}; got "
            f"{datastore.keys.shape[1]}. Build the keys with this decoder"
        )
    values = torch.from_numpy(datastore.values.astype("int64")).to(decoder.device)
    counts = torch.from_numpy(datastore.counts.astype("int32")).to(decoder.device)
    return Store(datastore, retriever, values, counts)


def store_texts(
    decoder: Any,
    titled: Sequence[tuple[str, str]],
    reference: Tensor | None = None,
    *,
    questions: bool = False,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Store:
    """Return the store of (title, text) pairs for a decoder.

    With reference (R, D), states of other texts, it is searched as a person's texts are; without,
    it is a kNN-LM's: passages, by squared L2. questions: the decoder was trained on "Question: ...
    Answer:". progress(done, total) counts tokens while keys are
    built; MlpMemError if stop() returns True.
    """

    def build(documents: Documents, positions: np.ndarray) -> np.ndarray:
        return build_keys(decoder, documents, positions, progress=progress, stop=stop)

    if reference is None:
        documents = cut_text(decoder, titled)
        positions, counts = entries(documents)
        keys = build(documents, positions)
        datastore = Datastore(keys, positions, counts, documents)
        return make_store(decoder, datastore, make_retriever("exact", keys))
    head = answer_head(decoder, questions)
    documents, positions, counts, keys = keyed(decoder, titled, head, build)
    datastore = Datastore(keys, positions, counts, documents)
    return open_texts(decoder, datastore, reference, form_ids(decoder, questions))


def open_texts(
    decoder: Any, datastore: Datastore, reference: Tensor, form: Collection[int]
) -> Store:
    """Return the store of a person's texts, of the datastore that `store_texts` made of them.

    form are the token ids of every chat, which are no words of a question.
    """
    keys, documents = np.asarray(datastore.keys), datastore.documents
    store = make_store(decoder, datastore, make_retriever("exact", keys))
    units = units_of(documents, decoder.pieces)
    starts = np.flatnonzero(np.diff(units, prepend=-1))
    parts = np.split(np.asarray(documents.tokens), starts[1:])
    topics = documents.document_of[documents.passage_at(starts)]
    words = Words(vocabulary_of(decoder), parts, topics, form)
    search = TextSearch(
        keys, datastore.positions, documents, words, parts, units[datastore.positions],
        reference,
    )  # fmt: skip
    return store._replace(texts=search)
