"""Any text corpus: documents from files or the Hub -> tokenizer, and passages of each split.

Documents are cut into passages of a fixed number of tokens, each keyed on its own: no key sees
beyond its passage. The splits that only measure keep documents whole, so that evaluation can slide
its window over them. All is streamed; what is held is one batch of blocks.
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
from mlpmem.model.tokenizer import load_tokenizer
from mlpmem.retrieval.texts import noted
from train.config.load import HUB, check_model
from train.config.tables import CorpusConfig
from train.corpora.readers import Block, read_blocks
from train.corpora.tokenizer import gpt2_tokenizer, train_tokenizer
from train.corpora.writer import DocumentWriter
from train.files import say, write_json

GROUP = "text"  # of every document
PARTS = {"train": "memory", "valid": "valid", "test": "test"}  # split -> folder
BATCH = 16  # blocks tokenised at once: of the longest ones, some hundreds of MB
SHOWN = 2**28  # characters that a tokenizer is trained on at most


def write_corpus(folder: Path, config: CorpusConfig, seed: int) -> dict:
    """Return counts; writes tokenizer/, memory/ (the training split), valid/ and test/."""
    if not config.train:
        raise MlpMemError(
            'corpus: nothing to read; give train = ["file or folder", ...] in the recipe\'s '
            f'[corpus], paths relative to the recipe, or "{HUB}owner/name"'
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
            raise MlpMemError(_nothing(split, config, counts))
    if line := noted(counts):
        say(f"corpus: {line}")
    write_json(folder / "attributions.json", list(config.attributions))
    tokens = sum(size["tokens"] for size in sizes.values())
    return {"tokens": tokens, "vocab_size": len(tokenizer)} | sizes | dict(counts)


def _nothing(split: str, config: CorpusConfig, counts: Counter) -> str:
    """Return what to say where a split has no document."""
    skipped = noted(counts) or "nothing was left out"
    if split == "train" or getattr(config, split):
        return f"corpus: the {split} split has no text ({skipped}); give sources that hold some"
    return (
        f"corpus: no document fell into the {split} split ({skipped}); cut the text into more "
        f"documents (heading, separator), raise shares, or give {split} = [...] of its own"
    )


def make_tokenizer(config: CorpusConfig, seed: int) -> Any:
    """Return the recipe's tokenizer: an existing one, or one trained on the training split."""
    if not config.tokenizer:
        blocks = _split_blocks(config, seed, Counter())
        texts = _first((block.text for split, block in blocks if split == "train"), SHOWN)
        return train_tokenizer(tqdm(texts, "tokenizer", unit="block"), config.vocab_size)
    if not config.tokenizer.startswith(HUB) and not Path(config.tokenizer).exists():
        raise MlpMemError(
            f"corpus: there is no folder {config.tokenizer}, whose tokenizer the recipe asks for "
            "(source in [decoder], or tokenizer in [corpus]); put it there, or correct the path, "
            f'which counts from the recipe\'s own folder, or give "{HUB}owner/name"'
        )
    made = gpt2_tokenizer(Path(config.tokenizer))
    if made is not None:
        return made
    check_model(config.tokenizer)
    name = config.tokenizer.removeprefix(HUB)
    try:
        return load_tokenizer(name, local_files_only=not config.tokenizer.startswith(HUB))
    except (OSError, ValueError) as error:
        raise MlpMemError(
            f"corpus: {name} holds no tokenizer that can be read; give a folder with "
            f'tokenizer.json or with GPT-2\'s encoder.json and vocab.bpe, or "{HUB}owner/name"'
        ) from error


def _first(texts: Iterable[str], most: int) -> Iterator[str]:
    """Yield texts until `most` characters were given."""
    for text in texts:
        if most <= 0:
            return
        most -= len(text)
        yield text


def _split_blocks(config: CorpusConfig, seed: int, counts: Counter) -> Iterator[tuple[str, Block]]:
    """Yield (split, block) of all sources.

    A split without sources of its own takes its share of the training documents, by a hash of seed
    and beginning: the same every time, and copies of a document fall into the same split.
    """
    shares = zip(("valid", "test"), config.shares, strict=True)
    drawn = [(split, share) for split, share in shares if not getattr(config, split)]
    split = "train"
    for block in read_blocks(config.train, config, counts):
        if block.first:
            split = _drawn(block.text, seed, drawn)
        yield split, block
    for split in ("valid", "test"):
        for block in read_blocks(getattr(config, split), config, counts):
            yield split, block


def _drawn(text: str, seed: int, shares: list[tuple[str, float]]) -> str:
    """Return the split of a document that begins with text."""
    digest = hashlib.blake2b(f"{seed}/{text}".encode(errors="replace"), digest_size=8).digest()
    luck = int.from_bytes(digest, "big") / 2**64
    for split, share in shares:
        if luck < share:
            return split
        luck -= share
    return "train"


def write_passages(
    stream: Iterator[tuple[str, Block]],
    writers: dict[str, DocumentWriter],
    tokenizer: Any,
    widths: dict[str, int],
) -> None:
    """Write every split's documents, cut where `widths` gives the split's tokens a passage.

    A passage begins with BOS (EOS where there is none, nothing where there is neither); a document
    ends with EOS where there is one.
    """
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    start = eos if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    cutters = {
        split: Cutter(writer, start, eos, widths.get(split)) for split, writer in writers.items()
    }
    with tqdm(desc="tokens", unit="token", unit_scale=True) as bar:
        while batch := list(islice(stream, BATCH)):
            texts = [block.text for _, block in batch]
            ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            for (split, block), row in zip(batch, ids, strict=True):
                cutters[split].add(block, row)
            bar.update(sum(map(len, ids)))
    for cutter in cutters.values():
        cutter.finish()


class Cutter:
    """Cuts the token ids of one document after another into passages."""

    def __init__(
        self, writer: DocumentWriter, start: list[int], end: list[int], width: int | None
    ) -> None:
        """Write passages of at most `width` tokens, or a passage a document for None."""
        self.writer, self.start, self.end, self.width = writer, start, end, width
        self.used = 0  # tokens in the passage that is open, 0 where none is

    def add(self, block: Block, ids: list[int]) -> None:
        """Add one block of a document, which ends when another begins."""
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
        """Write ids, closing every passage that is full once more is to come."""
        at = 0
        while at < len(ids):
            if self.width is not None and self.used >= self.width:
                self._close()
            if not self.used:
                self.writer.extend(self.start)
                self.used = len(self.start)
            room = len(ids) if self.width is None else max(1, self.width - self.used)
            self.writer.extend(ids[at : at + room])
            self.used += len(ids[at : at + room])
            at += room

    def _close(self) -> None:
        """Close the passage that is open."""
        self.writer.end_passage()
        self.used = 0
