"""Rows -> blocks, a document a row: JSON lines, Parquet, datasets of the Hub."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlpmem.errors import MlpMemError
from train.config.tables import Corpus
from train.corpora import blocks
from train.corpora.blocks import Block, beginning, open_bytes
from train.hub import HUB

ROW = 2**26  # bytes a line of JSON may have: it can only be parsed whole


def read_json(path: Path, config: Corpus, counts: Counter) -> Iterator[Block]:
    """Yield the blocks of a JSON-lines file, a document a line."""
    yield from blocks_of_rows(_json_rows(path), config, counts)


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (file:line, value) of every line that is not blank."""
    with open_bytes(path) as file:
        for number in range(1, 2**62):
            line, where = file.readline(ROW), f"{path}:{number}"
            if not line:
                return
            if len(line) == ROW:
                raise MlpMemError(
                    f"corpus: {where}: the line is longer than {ROW >> 20} MiB and can only be "
                    "read whole; write its text as a .txt file, or cut it into several lines"
                )
            if line.strip():
                try:
                    yield where, json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise MlpMemError(
                        f"corpus: {where}: no JSON in UTF-8 ({error}); correct the line, or use "
                        ".txt for plain text"
                    ) from error


def read_parquet(path: Path, config: Corpus, counts: Counter) -> Iterator[Block]:
    """Yield the blocks of a Parquet file, a document a row."""
    yield from blocks_of_rows(_parquet_rows(path, config), config, counts)


def _parquet_rows(path: Path, config: Corpus) -> Iterator[tuple[str, dict]]:
    """Yield (file:row, row) of the columns needed, a few rows at a time."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise MlpMemError(_missing(str(path), error)) from error
    try:
        with parquet.ParquetFile(path) as file:
            there = set(file.schema_arrow.names)
            columns = sorted(there & {config.text_field, config.title_field}) or sorted(there)
            number = 0
            for batch in file.iter_batches(64, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
    except arrow.ArrowInvalid as error:
        raise MlpMemError(f"corpus: {path} is no Parquet file ({error}); write it again") from error


def hub_rows(name: str) -> Iterator[tuple[str, dict]]:
    """Yield (where, row) of a Hub dataset "owner/name[:configuration[:split]]", streamed."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MlpMemError(_missing(f"{HUB}{name}", error)) from error
    owner_name, _, rest = name.partition(":")
    configuration, _, split = rest.partition(":")
    try:
        rows = datasets.load_dataset(
            owner_name, configuration or None, split=split or "train", streaming=True
        )
        for number, row in enumerate(rows, 1):
            yield f"{HUB}{name}:{number}", row
    except (OSError, ValueError) as error:
        why = str(error).partition("\n")[0]
        raise MlpMemError(
            f"corpus: cannot read {HUB}{name} ({why}); write "
            f'"{HUB}owner/name", "{HUB}owner/name:configuration" or '
            f'"{HUB}owner/name:configuration:split", and check the network'
        ) from error


def _missing(source: str, error: ModuleNotFoundError) -> str:
    """Return what to say where a reader's package is not installed."""
    return (
        f"corpus: {source} is read by {error.name}, which is not installed here; install it with "
        'pip install -e ".[train]", or give .txt, .md or .jsonl files'
    )


def whole(text: str) -> str:
    """Return a text with U+FFFD for halves of a pair of surrogates, as JSON cut in an emoji has."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def blocks_of_rows(
    rows: Iterator[tuple[str, Any]], config: Corpus, counts: Counter
) -> Iterator[Block]:
    """Yield the blocks of rows (where, {text, title}); MlpMemError for a row without text."""
    for where, row in rows:
        text = row.get(config.text_field) if isinstance(row, dict) else None
        if not isinstance(text, str):
            there = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise MlpMemError(
                f"corpus: {where}: no text in {config.text_field!r}; there is {there}. Set "
                "text_field in the recipe's [corpus], or correct the row"
            )
        if not text.strip():
            counts["empty_documents"] += 1
            continue
        text = whole(text)
        title = whole(str(row.get(config.title_field) or beginning(text)))
        for start in range(0, len(text), blocks.BLOCK):
            yield Block(title, text[start : start + blocks.BLOCK], start == 0)
