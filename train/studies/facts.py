"""New facts: people, towns and books of no corpus, said and asked in the atlas's own forms."""

import dataclasses
import random
from dataclasses import dataclass, replace

from mlpmem.retrieval.documents import Documents, join_passages
from train.config.tables import Recipe
from train.corpora.atlas import passages as atlas_corpus
from train.corpora.atlas.strangers import strangers
from train.corpora.atlas.wordings import Atlas, AtlasConfig, word_fact
from train.corpora.tokenizer import encode_segments
from train.measure.questions import Questions, ask, sample_questions

GROUP = "B"  # as many wordings as a fact that decoders never see
WORDINGS = ("new/seen", "new/test", "new/unseen", "new/statement_test")


@dataclass(frozen=True)
class NewFacts:
    """Documents to learn from, and what can be asked of them."""

    facts: int
    documents: Documents
    questions: Questions  # of the cells WORDINGS


def make_facts(recipe: Recipe, tokenizer, least: int, most: int) -> NewFacts:
    """Return at least `least` new facts (whole entities), at most `most` questions a wording.

    Names are unlike those of any entity; answers are drawn from those of the decoder's entities.
    """
    said = dataclasses.asdict(recipe.corpus.atlas)
    config = AtlasConfig(seed=recipe.seed, scale=recipe.corpus.scale, **said)
    new = _new_atlas(atlas_corpus.build_atlas(config), least)
    passages = list(atlas_corpus.memory_passages(new))
    ids = encode_segments(tokenizer, [segments for _, segments in passages])
    pairs = [(entity, row) for (entity, _), row in zip(passages, ids, strict=True)]
    titles = [entity.title for entity in new.entities]
    documents = join_passages(pairs, titles, [GROUP] * len(titles))
    rows = [row | {"group": "new"} for row in atlas_corpus.questions(new)]
    return NewFacts(len(new.facts), documents, ask(tokenizer, _drawn(rows, most, recipe.seed)))


def _new_atlas(atlas: Atlas, least: int) -> Atlas:
    """Return an atlas of strangers alone, until they have `least` facts."""
    config = atlas.config
    found = [e for e in strangers(atlas.entities, f"{config.seed}/update", 0.5) if _invented(e)]
    random.Random(f"{config.seed}/update").shuffle(found)
    entities, facts = [], []
    for entity in found:
        if len(facts) >= least:
            break
        entities.append(replace(entity, group=GROUP))
        facts += [
            word_fact(config, atlas.forms[relation], len(entities) - 1, entities[-1], relation)
            for relation in atlas.forms
            if relation in entity.answers
        ]
    return replace(atlas, entities=entities, facts=facts)


def _invented(entity) -> bool:
    """Return whether an entity is of a kind that the atlas invents."""
    return entity.kind in ("person", "town", "book")


def _drawn(rows: list[dict], most: int, seed: int) -> list[dict]:
    """Return at most `most` rows of each of WORDINGS, drawn by seed."""
    return sample_questions(rows, list(WORDINGS), most, seed)
