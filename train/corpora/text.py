"""Text corpora: from documents of files or the Hub to a tokenizer and the passages of each split.

Training documents are cut into passages of a fixed number of tokens; no key sees beyond its
passage. Validation and test documents stay whole, so that evaluation can slide its window over
them. Everything is streamed: one batch of blocks is in memory at a time.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mlpmem.errors import MlpMemError
from mlpmem.model.tokenizer import encode_texts, load_tokenizer
from mlpmem.retrieval.texts import noted
from train.config.corpus import CorpusConfig
from train.config.load import HUB, check_model
from train.corpora.readers import Block, read_blocks
from train.corpora.source import located
from train.corpora.tokenizer import gpt2_tokenizer, train_tokenizer
from train.corpora.writer import DocumentWriter
from train.files import print_line, write_json

GROUP = "text"  # of every document
PARTS = {"train": "memory", "valid": "valid", "test": "test"}  # split -> folder
BATCH = 16  # blocks tokenised at once; up to some hundred MB
TOKENIZER_TEXT = 2**28  # characters that a tokenizer is trained on, at most


def write_corpus(folder: Path, config: CorpusConfig, seed: int) -> dict:
    """Write tokenizer/, memory/ (the training split), valid/ and test/; return counts."""
    if not config.train:
        raise MlpMemError(
            'corpus: train must name a source or more; got none. Give train = ["file or folder", '
            f'...] in [corpus], paths relative to the recipe, or "{HUB}owner/name"'
        )
    tokenizer = make_tokenizer(config, seed)
    tokenizer.save_pretrained(folder / "tokenizer")
    counts, sizes = Counter(), {}
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(DocumentWriter(folder / part, len(tokenizer)))
            for split, part in PARTS.items()
        }
        stream = _split_blocks(config, seed, counts)
        write_passages(stream, writers, tokenizer, {"train": config.passage})
        for split, writer in writers.items():
            sizes[split] = {"tokens": writer.tokens.length, "documents": writer.documents}
    for split, size in sizes.items():
        if not size["documents"]:
            raise MlpMemError(_empty_split(split, config, counts))
    if line := noted(counts):
        print_line(f"corpus: {line}")
    write_json(folder / "attributions.json", list(config.attributions))
    tokens = sum(size["tokens"] for size in sizes.values())
    return {"tokens": tokens, "vocab_size": len(tokenizer)} | sizes | dict(counts)


def _empty_split(split: str, config: CorpusConfig, counts: Counter) -> str:
    """Return the error message for a split without documents."""
    skipped = noted(counts) or "nothing was left out"
    if split == "train" or getattr(config, split):
        return f"corpus: the {split} split has no text ({skipped}); give sources that have some"
    return (
        f"corpus: no document fell into the {split} split ({skipped}); cut the text into more "
        f"documents (heading, separator), raise shares, or give {split} = [...]"
    )


def make_tokenizer(config: CorpusConfig, seed: int) -> Any:
    """Return the recipe's tokenizer: an existing one, or a new one of the training split."""
    if not config.tokenizer:
        blocks = _split_blocks(config, seed, Counter())
        texts = _first((block.text for split, block in blocks if split == "train"), TOKENIZER_TEXT)
        return train_tokenizer(tqdm(texts, "tokenizer", unit="block"), config.vocab_size)
    source = located(config.tokenizer)
    if not config.tokenizer.startswith(HUB) and not Path(source).exists():
        raise MlpMemError(
            f"corpus: there is no folder {config.tokenizer}, the recipe's tokenizer (source in "
            "[decoder], or tokenizer in [corpus]); correct the path, which is relative to the "
            f'recipe, or give "{HUB}owner/name"'
        )
    if (tokenizer := gpt2_tokenizer(Path(source))) is not None:
        return tokenizer
    check_model(config.tokenizer)
    try:
        return load_tokenizer(source, local_files_only=not config.tokenizer.startswith(HUB))
    except (OSError, ValueError) as error:
        raise MlpMemError(
            f"corpus: {source} has no readable tokenizer; give a folder with "
            f'tokenizer.json or with GPT-2\'s encoder.json and vocab.bpe, or "{HUB}owner/name"'
        ) from error


def _first(texts: Iterable[str], most: int) -> Iterator[str]:
    """Yield texts until they have `most` characters in all."""
    for text in texts:
        if most <= 0:
            return
        most -= len(text)
        yield text


def _split_blocks(config: CorpusConfig, seed: int, counts: Counter) -> Iterator[tuple[str, Block]]:
    """Yield (split, block) of all sources.

    A split without sources takes its share of the training documents, by a hash of the seed and
    the document's first block. So splits are reproducible, and copies fall into the same split.
    """
    pairs = zip(("valid", "test"), config.shares, strict=True)
    shares = [(split, share) for split, share in pairs if not getattr(config, split)]
    split = "train"
    for block in read_blocks(config.train, config, counts):
        if block.first:
            split = _draw_split(block.text, seed, shares)
        yield split, block
    for split in ("valid", "test"):
        for block in read_blocks(getattr(config, split), config, counts):
            yield split, block


def _draw_split(text: str, seed: int, shares: list[tuple[str, float]]) -> str:
    """Return the split of a document whose first block is `text`."""
    digest = hashlib.blake2b(f"{seed}/{text}".encode(errors="replace"), digest_size=8).digest()
    position = int.from_bytes(digest, "big") / 2**64  # uniform in [0, 1)
    for split, share in shares:
        if position < share:
            return split
        position -= share
    return "train"


def write_passages(
    stream: Iterator[tuple[str, Block]],
    writers: dict[str, DocumentWriter],
    tokenizer: Any,
    widths: dict[str, int],
) -> None:
    """Write the documents of every split, in passages of `widths[split]` tokens or else whole.

    A passage begins with BOS (or EOS, if the tokenizer has no BOS); a document ends with EOS.
    """
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    start = eos if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    cutters = {
        split: Cutter(writer, start, eos, widths.get(split)) for split, writer in writers.items()
    }
    with tqdm(desc="tokens", unit="token", unit_scale=True) as bar:
        while batch := list(islice(stream, BATCH)):
            texts = [block.text for _, block in batch]
            ids = encode_texts(tokenizer, texts)
            for (split, block), row in zip(batch, ids, strict=True):
                cutters[split].add(block, row)
            bar.update(sum(map(len, ids)))
    for cutter in cutters.values():
        cutter.finish()


class Cutter:
    """Cuts the token ids of a stream of documents into passages."""

    def __init__(
        self, writer: DocumentWriter, start: list[int], end: list[int], width: int | None
    ) -> None:
        """Write passages of at most `width` tokens, or one per document if None."""
        self.writer, self.start, self.end, self.width = writer, start, end, width
        self.used = 0  # tokens in the open passage, 0 if none is open

    def add(self, block: Block, ids: list[int]) -> None:
        """Add one block; a first block ends the document before it."""
        if block.first:
            self.finish()
            self.writer.begin(block.title, GROUP)
        self._extend(ids)

    def finish(self) -> None:
        """End the document, if one is open."""
        if self.used:
            self._extend(self.end)
            self._close()

    def _extend(self, ids: list[int]) -> None:
        """Write ids; a full passage is closed when the next token arrives."""
        start = 0
        while start < len(ids):
            if self.width is not None and self.used >= self.width:
                self._close()
            if not self.used:
                self.writer.extend(self.start)
                self.used = len(self.start)
            room = len(ids) if self.width is None else max(1, self.width - self.used)
            part = ids[start : start + room]
            self.writer.extend(part)
            self.used += len(part)
            start += room

    def _close(self) -> None:
        """Close the open passage."""
        self.writer.end_passage()
        self.used = 0
