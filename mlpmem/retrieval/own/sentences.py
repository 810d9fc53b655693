"""Texts in sentences, each keyed as an answer that a decoder would give.

A chat model begins its answers in a state of its own. A sentence that is keyed behind the same
words, and ends as an answer ends, is near when an answer begins, and can be given whole. A decoder
without a chat template reads the text in passages, as any corpus.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlpmem.errors import MlpMemError
from mlpmem.model.prompts import chat_ids
from mlpmem.model.tokenizer import encode_text
from mlpmem.retrieval.documents import Documents, entries, join_passages
from mlpmem.retrieval.texts import cut_text

DIFFERENT = "one 1 six", "Za, b"  # share no word
ASKED = "Tell me."  # what every sentence is keyed as an answer to
LONGEST = 96  # tokens of a sentence; a longer one is cut
ENDS = re.compile(r"(?<=[.!?\u2026])[\"'\u201d\u2019)\]]*\s+|(?<=[\u3002\uff01\uff1f])|\s*\n\s*")


def sentences_of(text: str) -> list[str]:
    """Return a text's sentences, without the white space around them; a line ends one too."""
    return [part for piece in _cut(text) if (part := piece.strip())]


def _cut(text: str) -> list[str]:
    """Return a text in pieces that end where a sentence does, with the quotes that close it."""
    pieces, at = [], 0
    for match in ENDS.finditer(text):
        pieces.append(text[at : match.end()])
        at = match.end()
    return [*pieces, text[at:]]


def answer_head(decoder: Any, questions: bool = False) -> list[int]:
    """Return what an answer of the decoder stands behind, [] where chats are lines of one text.

    questions: the decoder was trained on "Question: ... Answer:".
    """
    if not questions and not getattr(decoder.tokenizer, "chat_template", None):
        return []
    return chat_ids(decoder, ASKED, questions=questions)


def form_ids(decoder: Any, questions: bool = False) -> set[int]:
    """Return the token ids of every chat, such as those of a system message."""
    first, second = (set(chat_ids(decoder, text, questions=questions)) for text in DIFFERENT)
    return first & second


def end_of_answer(decoder: Any) -> int | None:
    """Return the token that ends an answer."""
    own = decoder.tokenizer.eos_token_id
    return own if own in decoder.eos_ids or not decoder.eos_ids else min(decoder.eos_ids)


def cut_sentences(decoder: Any, titled: Sequence[tuple[str, str]], head: int) -> Documents:
    """Return (title, text) pairs as documents with one sentence a passage, its end token last.

    A sentence that does not fit behind the tokens of a head is cut. MlpMemError if there is no
    text, or if nothing fits behind the head.
    """
    last = end_of_answer(decoder)
    end = [] if last is None else [last]
    longest = min(LONGEST, decoder.max_positions - head - len(end))
    if longest < 1:
        raise MlpMemError(
            f"text: the decoder reads {decoder.max_positions} tokens, and its form of questions "
            f"takes {head} of them, so no sentence fits behind it; take another decoder"
        )
    passages: list[tuple[int, list[int]]] = []
    for index, (_, text) in enumerate(titled):
        for sentence in sentences_of(text):
            ids = encode_text(decoder.tokenizer, sentence)
            parts = [ids[at : at + longest] for at in range(0, len(ids), longest)]
            passages += [(index, part + end) for part in parts]
    if not passages:
        raise MlpMemError(
            "text: the files must hold some text; give other .txt, .md or .jsonl files"
        )
    return join_passages(passages, [title for title, _ in titled], ["text"] * len(titled))


def behind(documents: Documents, head: Sequence[int]) -> Documents:
    """Return documents with a head before every passage, as its prompt."""
    passages = [
        (int(document), [*head, *documents.passage(p).tolist()])
        for p, document in enumerate(documents.document_of)
    ]
    prompts = [len(head)] * len(passages)
    return join_passages(passages, documents.titles, documents.groups, prompts)


def keyed(
    decoder: Any,
    titled: Sequence[tuple[str, str]],
    head: Sequence[int],
    build: Callable[[Documents, np.ndarray], np.ndarray],
) -> tuple[Documents, np.ndarray, np.ndarray, np.ndarray]:
    """Return (documents, positions, counts, keys) of texts; build gives the keys of positions.

    With a head, every sentence is keyed behind it.
    """
    documents = cut_sentences(decoder, titled, len(head)) if head else cut_text(decoder, titled)
    full, places, positions, counts = placed(documents, head)
    return documents, positions, counts, build(full, places)


def placed(
    documents: Documents, head: Sequence[int]
) -> tuple[Documents, np.ndarray, np.ndarray, np.ndarray]:
    """Return (documents as they are keyed, places of the entries in them, positions, counts).

    positions are the entries' places in the documents without the head.
    """
    if not head:
        positions, counts = entries(documents)
        return documents, positions, positions, counts
    full = behind(documents, head)
    places, counts = entries(full)
    return full, places, places - (full.passage_at(places) + 1) * len(head), counts


def units_of(documents: Documents, pieces: Sequence[str]) -> np.ndarray:
    """Return the sentence of every token, (M,) int64 ascending.

    One begins with each passage, and behind a token that ends a sentence.
    """
    ends = np.array([piece.rstrip().endswith((".", "!", "?")) or "\n" in piece for piece in pieces])
    begins = np.zeros(len(documents.tokens) + 1, np.int64)
    begins[1:] = ends[documents.tokens]
    begins[documents.offsets[:-1]] = 1
    begins[0] = 0
    return np.cumsum(begins[:-1])
