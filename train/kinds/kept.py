"""What a memory of facts must leave to the decoder: its own chats, and text as it reads it.

Requests that have nothing to do with the facts, requests that only name their entities, and those
that follow a fact's question and name nothing are answered by the decoder, greedily. The memory
learns to give the decoder's own distributions there.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from mlpmem.api import Model
from mlpmem.engine.systems import ModelSystem
from mlpmem.model.decoder import Decoder
from mlpmem.model.tokenizer import encode_text
from mlpmem.retrieval.documents import Documents, join_passages
from mlpmem.retrieval.texts import decoded, opened
from train.config.corpus import CorpusConfig
from train.corpora.atlas.chats import Facts, follow_ups, requests
from train.corpora.chat import ChatForm, Turns
from train.corpora.readers import files_of
from train.measure.batches import generate

SPLITS = ("train", "dev", "test")
SORTS = ("general", "naming", "follow")
GROUPS = (*SORTS, "plain")
PLAIN_SHARE = 4  # the plain text of dev, and of test, is a quarter of that of train
PIECE, FEWEST = 2**16, 8  # characters of a piece of plain text, at most; pieces of a file


def write_kept(
    folder: Path, decoder: Decoder, form: ChatForm, facts: Facts, config: CorpusConfig, seed: int
) -> int:
    """Write train/, dev/ and test/ into folder; return the number of tokens."""
    options, total = config.chat, 0
    parts = {split: [] for split in SPLITS}  # (group, ids, prompt)
    for sort in SORTS:
        chats, held_out = _chats(facts, sort, config, seed)
        passages = _answered(decoder, form, chats, options.answer_tokens)
        parts["dev"] += [(sort, *passage) for passage in passages[:held_out]]
        parts["test"] += [(sort, *passage) for passage in passages[held_out : 2 * held_out]]
        parts["train"] += [(sort, *passage) for passage in passages[2 * held_out :]]
    for split, ids in _plain(decoder, config, seed):
        parts[split].append(("plain", ids, 1))
    for split, passages in parts.items():
        documents = _documents(passages)
        documents.save(folder / split)
        total += len(documents.tokens)
    return total


def _chats(facts: Facts, sort: str, config: CorpusConfig, seed: int) -> tuple[list[Turns], int]:
    """Return the chats of a sort, and how many of them are of dev, and as many of test."""
    count, held_out = getattr(config.chat, sort), config.chat.held_out
    if not count:
        return [], 0
    if sort == "follow":
        return follow_ups(facts, count + 2 * held_out, 2 * held_out, seed), held_out
    texts = requests(facts, sort, count + 2 * held_out, seed)
    return [[(text, "")] for text in texts], min(held_out, len(texts) // 4)


def _answered(
    decoder: Decoder, form: ChatForm, chats: Sequence[Turns], most: int
) -> list[tuple[list[int], int]]:
    """Return (token ids, tokens of the prompt) of chats with the decoder's answers."""
    encoded = form.encode(decoder.tokenizer, chats)
    system = ModelSystem(Model(decoder), "lm", None)
    answers = generate(system, [ids for ids, _ in encoded], most)
    return [([*ids, *own], len(ids)) for (ids, _), own in zip(encoded, answers, strict=True)]


def _plain(decoder: Decoder, config: CorpusConfig, seed: int) -> list[tuple[str, list[int]]]:
    """Return (split, token ids of a passage) of pieces of the plain text."""
    wanted = {"train": config.chat.plain_tokens}
    wanted["dev"] = wanted["test"] = wanted["train"] // PLAIN_SHARE
    files = [path for source in config.train for path in files_of(source)]
    pieces = []
    for path in files if wanted["train"] else ():
        with opened(path) as file:
            text = "".join(decoded(file, path))
        piece = min(PIECE, max(1, len(text) // FEWEST))
        pieces += [text[i : i + piece] for i in range(0, len(text), piece)]
    random.Random(f"{seed}/plain").shuffle(pieces)
    result, size = [], config.passage
    for split, count in wanted.items():
        while count > 0 and pieces:
            ids = encode_text(decoder.tokenizer, pieces.pop())
            passages = [ids[i : i + size] for i in range(0, len(ids) - size + 1, size)]
            passages = passages[: -(-count // size)]
            result += [(split, passage) for passage in passages]
            count -= sum(map(len, passages))
    return result


def _documents(passages: Sequence[tuple[str, list[int], int]]) -> Documents:
    """Return (group, token ids, tokens of the prompt) as documents, one per group."""
    rows = [(GROUPS.index(group), ids) for group, ids, _ in passages]
    groups = list(GROUPS)
    return join_passages(rows, groups, groups, [prompt for _, _, prompt in passages])
