"""TODO."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlpmem.errors import MlpMemError
from mlpmem.formats import parse_json, valid
from mlpmem.model.decoder import Decoder
from mlpmem.retrieval.datastore import Datastore, Store, build_keys, make_store
from mlpmem.retrieval.documents import Documents, entries, join_passages
from mlpmem.retrieval.retriever import make_retriever

CHUNK = 256  # tokens of a passage made of plain text


TEXT_KINDS = (".txt", ".md", ".jsonl")


def store_texts(
    decoder: Decoder,
    titled: Sequence[tuple[str, str]],
    *,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Store:
    """Return the store of (title, text) pairs, searched exactly.

    progress(done, total) counts tokens while keys are built; raises MlpMemError if stop() is True.
    """
    documents = cut_text(decoder, titled)
    positions, counts = entries(documents)
    keys = build_keys(decoder, documents, positions, progress=progress, stop=stop)
    datastore = Datastore(keys, positions, counts, documents)
    return make_store(decoder, datastore, make_retriever("exact", keys))


def read_text(decoder: Decoder, paths: Sequence[str | Path], chunk: int = CHUNK) -> Documents:
    """Return the documents of .txt and .md files (one a file) and .jsonl files (one a line).

    A line of .jsonl is an object with "text" and, optionally, "title". Documents are cut into
    passages of `chunk` tokens, each keyed on its own.
    """
    return cut_text(decoder, [pair for path in paths for pair in _documents(Path(path))], chunk)


def cut_text(decoder: Decoder, titled: Sequence[tuple[str, str]], chunk: int = CHUNK) -> Documents:
    """Return (title, text) pairs as documents, cut into passages of `chunk` tokens."""
    chunk = min(chunk, decoder.max_positions)
    passages: list[tuple[int, list[int]]] = []
    for index, (_, text) in enumerate(titled):
        passages += [(index, ids) for ids in _passages(decoder, text, chunk)]
    if not passages or not any(text.strip() for _, text in titled):
        raise MlpMemError("text: the files hold no text; give .txt, .md or .jsonl files with some")
    titles = [title for title, _ in titled]
    return join_passages(passages, titles, ["text"] * len(titles))


def _passages(decoder: Decoder, text: str, chunk: int) -> list[list[int]]:
    """Return a document's passages: BOS (where there is one) before each, EOS after the last."""
    tokenizer = decoder.tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    if not ids:
        return []
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    start = end if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids, width = ids + end, max(1, chunk - len(start))
    return [start + ids[at : at + width] for at in range(0, len(ids), width)]


def _documents(path: Path) -> list[tuple[str, str]]:
    """Return (title, text) of every document of a file; MlpMemError where it cannot be read."""
    if path.suffix not in TEXT_KINDS:
        raise MlpMemError(f"text: {path.name} is none of {', '.join(TEXT_KINDS)}; convert it first")
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise MlpMemError(
            f"text: cannot read {path.name} ({why}); check the path, and save it as UTF-8"
        ) from error
    return titled_texts(path.name, content)


def titled_texts(name: str, content: str) -> list[tuple[str, str]]:
    """Return (title, text) of every document in a file's content; a .jsonl has one a line."""
    if not name.endswith(".jsonl"):
        return [(name, content)]
    lines = enumerate(content.split("\n"), start=1)  # splitlines would cut at U+2028 too
    return [_line(name, number, line) for number, line in lines if line.strip()]


def _line(name: str, number: int, line: str) -> tuple[str, str]:
    """Return (title, text) of one line of a .jsonl file."""
    try:
        row: Any = parse_json(line)
        text = row["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise MlpMemError(
            f'text: line {number} of {name} is no object with a "text" ({error!r}); correct it'
        ) from error
    return valid(str(row.get("title") or f"{name}:{number}")), valid(str(text))
