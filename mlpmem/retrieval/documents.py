"""Tokenised documents, and the datastore entries in them; nothing here needs text or a model.

A *document* (an entity, an article) has a title, a group and *passages*. Attention never leaves a
passage. P passages, M tokens, N datastore entries.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlpmem.errors import MlpMemError
from mlpmem.formats import check_kinds, read_json

NAMES_BYTES = 2**32  # of titles or groups: as many as a corpus has


@dataclass(frozen=True)
class Documents:
    """The tokens of all passages, end to end, with the passages' offsets and documents."""

    tokens: np.ndarray  # (M,) token ids
    offsets: np.ndarray  # (P + 1,) int64, passage p is tokens[offsets[p]:offsets[p + 1]]
    document_of: np.ndarray  # (P,) int32, index into titles
    titles: list[str]
    groups: list[str]  # of each document: "A1", "A2", "B" or "text"
    # (P,) int32, tokens at a passage's head that are only context, such as a question; None: the
    # first token of each, as in ordinary text
    prompts: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Raise MlpMemError if the arrays contradict one another."""
        arrays = (self.tokens, self.offsets, self.document_of)
        names = (self.titles, self.groups)
        if not all(a.ndim == 1 and np.issubdtype(a.dtype, np.integer) for a in arrays) or not all(
            isinstance(column, list) and all(isinstance(name, str) for name in column)
            for column in names
        ):
            raise MlpMemError(
                "documents: tokens, offsets and document_of must be rows of whole numbers, titles "
                "and groups lists of texts. The folder is damaged; build or download it again"
            )
        offsets, passages = self.offsets, len(self.document_of)
        ordered = (
            len(offsets) == passages + 1
            and offsets[0] == 0
            and bool(np.all(offsets[1:] > offsets[:-1]))
        )
        if passages and (not ordered or offsets[-1] != len(self.tokens)):
            raise MlpMemError(
                f"documents: {len(offsets)} offsets do not cut {len(self.tokens)} tokens into "
                f"{passages} passages. The folder is damaged; build or download it again"
            )
        if len(self.titles) != len(self.groups) or (
            passages
            and not 0
            <= int(self.document_of.min())
            <= int(self.document_of.max())
            < len(self.titles)
        ):
            raise MlpMemError(
                "documents: titles and groups do not match the passages; build them again"
            )
        if self.prompts is not None:
            self._check_prompts()

    def _check_prompts(self) -> None:
        """Raise MlpMemError unless every passage has a prompt of at least one of its tokens."""
        prompts, lengths = np.asarray(self.prompts), np.diff(self.offsets)
        if (
            prompts.shape != self.document_of.shape
            or not np.issubdtype(prompts.dtype, np.integer)
            or not np.all((prompts >= 1) & (prompts <= lengths))
        ):
            raise MlpMemError(
                "documents: prompts must be a whole number per passage, 1 to its length; the "
                "folder is damaged, build or download it again"
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
        if self.prompts is not None:
            np.save(folder / "prompts.npy", self.prompts.astype(np.int32))
        for name in ("titles", "groups"):
            (folder / f"{name}.json").write_text(
                json.dumps(getattr(self, name), ensure_ascii=False), encoding="utf-8"
            )

    @classmethod
    def load(cls, folder: str | Path) -> "Documents":
        """Return the checked documents of a folder; the arrays are mapped from disk."""
        folder = Path(folder)
        check_kinds(folder, "documents")
        try:
            tokens, offsets, document_of = (
                open_array(folder / f"{name}.npy") for name in ("tokens", "offsets", "document_of")
            )
            prompts = folder / "prompts.npy"
            prompts = open_array(prompts) if prompts.is_file() else None
            titles, groups = (
                read_json(folder / f"{name}.json", NAMES_BYTES) for name in ("titles", "groups")
            )
        except (OSError, ValueError) as error:
            raise MlpMemError(
                f"documents: cannot read {folder.name} ({error}); build or download it again"
            ) from error
        return cls(tokens, offsets, document_of, titles, groups, prompts)


def open_array(path: Path) -> np.ndarray:
    """Return a .npy file's array, mapped from disk; OSError, or ValueError where it is none."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError):
        raise
    except Exception as error:  # a damaged header is read as Python
        raise ValueError(f"it is no array ({type(error).__name__})") from error


def join_passages(
    passages: list[tuple[int, list[int]]],
    titles: list[str],
    groups: list[str],
    prompts: list[int] | None = None,
) -> Documents:
    """Return Documents of (document index, token ids) pairs, in order."""
    lengths = np.array([len(ids) for _, ids in passages], dtype=np.int64)
    return Documents(
        tokens=np.fromiter((i for _, ids in passages for i in ids), np.int32, int(lengths.sum())),
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        document_of=np.array([d for d, _ in passages], dtype=np.int32),
        titles=titles,
        groups=groups,
        prompts=None if prompts is None else np.array(prompts, dtype=np.int32),
    )


def join_documents(first: Documents, second: Documents) -> Documents:
    """Return the passages of `first`, then of `second`; positions in `first` stay valid."""
    return Documents(
        tokens=np.concatenate([first.tokens, second.tokens]),
        offsets=np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]),
        document_of=np.concatenate(
            [first.document_of, second.document_of + np.int32(len(first.titles))]
        ),
        titles=[*first.titles, *second.titles],
        groups=[*first.groups, *second.groups],
        prompts=_joined_prompts(first, second),
    )


def _joined_prompts(first: Documents, second: Documents) -> np.ndarray | None:
    """Return the prompts of both, None if neither has any."""
    if first.prompts is None and second.prompts is None:
        return None
    parts = [np.ones(len(d), np.int32) if d.prompts is None else d.prompts for d in (first, second)]
    return np.concatenate(parts)


def entries(documents: Documents) -> tuple[np.ndarray, np.ndarray]:
    """Return (positions (N,) int64, counts (N,) int32), one per distinct (prefix, next token).

    A position is the index in `tokens` of the entry's *value*; its key is the hidden state one
    token earlier. Equal prefixes have equal keys, so copies are counted and not stored: the kNN
    distribution is the same and the datastore smaller. The first copy represents all, so appending
    documents changes no position and only adds to counts. Tokens of a passage's prompt are no
    entries, so a chat must come after those that it begins with.

    Passages with equal beginnings are split column by column until all differ, which takes few
    columns in ordinary text. Working memory is 4 bytes per token and about 60 per passage.
    """
    lengths = np.diff(documents.offsets)
    counts = np.ones(len(documents.tokens), np.int32)
    alike = np.arange(len(documents))  # passages whose prefix another passage shares
    group = np.zeros(len(documents), np.int64)  # equal numbers mean equal prefixes
    width = int(documents.tokens.max(initial=0)) + 1
    for column in range(int(lengths.max(initial=0))):
        longer = lengths[alike] > column
        alike, group = alike[longer], group[longer]
        at = documents.offsets[alike] + column
        _, first, group, copies = np.unique(
            group * width + documents.tokens[at],
            return_index=True,
            return_inverse=True,
            return_counts=True,
        )
        counts[at] = 0
        counts[at[first]] = copies
        shared = copies[group] > 1
        alike, group = alike[shared], group[shared]
        if not len(alike):
            break
    counts[documents.offsets[:-1]] = 0  # a passage's first token has no key
    if documents.prompts is not None:
        for start, prompt in zip(documents.offsets[:-1], documents.prompts, strict=True):
            counts[start : start + prompt] = 0
    positions = np.flatnonzero(counts)
    return positions, counts[positions]
