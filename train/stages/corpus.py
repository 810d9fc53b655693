"""Stage corpus: text -> tokenizer, the decoder's draws, the memory's documents, questions."""

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.model.tokenizer import load_tokenizer, tokenizer_hash
from mlpmem.retrieval.documents import join_passages
from train.corpora.atlas import passages as atlas_corpus
from train.corpora.text import write_corpus
from train.corpora.tokenizer import encode_segments, train_tokenizer
from train.files import write_json, write_lines
from train.run.stage import Context

TOKENIZER_DRAWS = 2  # wordings differ between draws; two show the tokenizer nearly all words


def make_corpus(context: Context) -> dict:
    """Return counts; writes tokenizer/, memory/ and what else the kind of corpus has."""
    if context.config.kind == "text":
        return write_corpus(context.folder, context.config, context.seed)
    return make_atlas(context)


def make_atlas(context: Context) -> dict:
    """Return counts; writes tokenizer/, decoder_XX/, memory/, heldout/ and questions.jsonl."""
    config, folder = context.config, context.folder
    said = dataclasses.asdict(config.atlas)
    atlas = atlas_corpus.build_atlas(
        atlas_corpus.AtlasConfig(seed=context.seed, scale=config.scale, **said)
    )
    draws = [list(atlas_corpus.decoder_passages(atlas, draw)) for draw in range(config.draws)]
    texts = _plain_texts(atlas, min(TOKENIZER_DRAWS, config.draws))
    tokenizer = train_tokenizer(texts, config.vocab_size)
    tokenizer.save_pretrained(folder / "tokenizer")
    entities = [(e.title, e.group) for e in atlas.entities]
    for draw, passages in enumerate(draws):
        passages += atlas_corpus.stranger_passages(atlas, draw)
    remembered = list(atlas_corpus.memory_passages(atlas))
    remembered += atlas_corpus.remembered_strangers(atlas)
    parts = {
        f"decoder_{i:02d}": passages + remembered * config.together
        for i, passages in enumerate(draws)
    }
    parts["memory"] = remembered
    parts["heldout"] = list(atlas_corpus.heldout_passages(atlas))
    counts = {}
    for part, passages in tqdm(parts.items(), desc="tokens", unit="part"):
        random.Random(f"{context.seed}/{part}").shuffle(passages)
        named = entities + [("One-off names", "stranger")] * (part != "heldout")
        counts[part] = _save_part(folder / part, tokenizer, passages, named)
    write_lines(folder / "questions.jsonl", atlas_corpus.questions(atlas))
    write_lines(folder / "abouts.jsonl", atlas_corpus.about_questions(atlas))
    write_json(folder / "attributions.json", atlas.attributions)
    groups = {g: sum(e.group == g for e in atlas.entities) for g in ("A1", "A2", "B")}
    return {"tokens": sum(counts.values()), "facts": len(atlas.facts), "entities": groups} | counts


def _plain_texts(atlas: atlas_corpus.Atlas, draws: int) -> Iterator[str]:
    """Yield what the decoder reads in its first draws, without the odd words."""
    plain = dataclasses.replace(atlas, config=dataclasses.replace(atlas.config, odd_words=0.0))
    for draw in range(draws):
        for _, segments in atlas_corpus.decoder_passages(plain, draw):
            yield from segments


def check_tokens(decoder: Decoder, corpus: Path) -> None:
    """Raise MlpMemError unless a corpus folder's tokens are those of a decoder's own tokenizer."""
    if tokenizer_hash(load_tokenizer(str(corpus / "tokenizer"))) != decoder.tokenizer_hash:
        raise MlpMemError(
            f"{corpus}: its text is cut by another tokenizer than the decoder's, so its tokens "
            "would mean other words; name the run and the bundle (or decoder) that belong together"
        )


def _save_part(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    passages: list[tuple[int, list[str]]],
    entities: list[tuple[str, str]],
) -> int:
    """Write one part's Documents; return its tokens."""
    ids = encode_segments(tokenizer, [segments for _, segments in passages])
    pairs = [(entity, row) for (entity, _), row in zip(passages, ids, strict=True)]
    documents = join_passages(pairs, [title for title, _ in entities], [g for _, g in entities])
    documents.save(folder)
    return len(documents.tokens)
