"""The corpus kind "atlas": facts in groups, with questions about them.

The decoder learns groups A1 and A2; only the memory learns group B. `train/corpora/atlas` makes the
facts.
"""

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from mlpmem.api import Model
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.documents import join_passages
from train.config.corpus import AtlasOptions
from train.config.tables import ExportConfig, Recipe, RouterFitConfig
from train.corpora.atlas import passages as atlas_corpus
from train.corpora.tokenizer import encode_segments, train_tokenizer
from train.files import read_lines, write_json, write_lines
from train.kinds.examples import best_descriptions, find_examples, record, untrained
from train.measure.atlas import (
    CHOOSING,
    GROUPS,
    MeasuredModel,
    Test,
    best_measurements,
    measure_atlas,
)
from train.measure.by_token import measure as measure_modes
from train.measure.by_token import measure_routed
from train.measure.findings import perplexity, share
from train.measure.questions import encode_questions, sample_questions
from train.measure.text import all_positions, groups_of, units_of
from train.run.kinds import BundleExamples, Kind, Measurement, RouterData, Trial
from train.run.stage import StageContext

TOKENIZER_DRAWS = 2  # wordings differ between draws; two hold nearly all words
ENTITIES = {"A1": 1154, "A2": 1155, "B": 771}  # at scale 1
WORDING_TOKENS = 80  # of an entity's facts, in one wording each
HELD_OUT_TOKENS = 265_000  # at scale 1
HELD_OUT_SHARE = 33  # held-out tokens per hundred of the memory's
QUESTION_TOKENS = 16  # with the answer


class AtlasKind(Kind):
    """Facts and questions: the decoder's draws, the memory's documents, held-out text."""

    name, has_questions = "atlas", True
    distinct, hard = 0.68, 0.25

    def tokens(self, recipe: Recipe) -> tuple[int, int, int]:
        """Return tokens of all parts, of the decoder's whole training, of the memory's part."""
        config = recipe.corpus
        draw, memory = (round(tokens * config.scale) for tokens in _tokens(config.atlas))
        draws = (draw + config.together * memory) * config.draws
        total = draws + memory + round(HELD_OUT_TOKENS * config.scale)
        return total, recipe.decoder.epochs * draws, memory

    def router_tokens(self, recipe: Recipe) -> int:
        """Return the tokens of questions and statements of three groups."""
        return 6 * recipe.router.questions * QUESTION_TOKENS

    def scored_tokens(self, recipe: Recipe, keyed: int) -> int:
        """Return the tokens of answers in all cells and of held-out text."""
        return 12 * recipe.evaluate.questions * 4 + HELD_OUT_SHARE * keyed // 100

    def make(self, context: StageContext) -> dict:
        """Return counts; writes tokenizer/, decoder_XX/, memory/, heldout/ and questions.jsonl."""
        config, folder = context.config, context.folder
        options = dataclasses.asdict(config.atlas)
        atlas = atlas_corpus.build_atlas(
            atlas_corpus.AtlasConfig(seed=context.seed, scale=config.scale, **options)
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
            titles = entities + [("One-off names", "stranger")] * (part != "heldout")
            counts[part] = _save_part(folder / part, tokenizer, passages, titles)
        write_lines(folder / "questions.jsonl", atlas_corpus.questions(atlas))
        write_lines(folder / "abouts.jsonl", atlas_corpus.about_questions(atlas))
        write_json(folder / "attributions.json", atlas.attributions)
        groups = {g: sum(e.group == g for e in atlas.entities) for g in GROUPS}
        total = {"tokens": sum(counts.values()), "facts": len(atlas.facts), "entities": groups}
        return total | counts

    def heldout(self, split: str) -> str:
        """Return the only folder of held-out text, for every split."""
        return "heldout"

    def router_data(
        self, corpus: Path, decoder: Decoder, config: RouterFitConfig, seed: int
    ) -> RouterData:
        """Return every token of questions and statements in their dev wordings.

        Groups have equal weight; in a group an answer token weighs `answers` times any other.
        """
        cells = [f"{g}/{w}" for g in GROUPS for w in (CHOOSING, f"statement_{CHOOSING}")]
        rows = sample_questions(
            read_lines(corpus / "questions.jsonl"), cells, config.questions, seed
        )
        questions = encode_questions(decoder.tokenizer, rows)
        documents = questions.documents
        positions = all_positions(documents)
        groups = groups_of(documents, positions)
        weights = np.where(np.isin(positions, questions.positions), config.answers, 1.0)
        for group in set(groups):
            weights[groups == group] /= weights[groups == group].sum()
        return RouterData(documents, positions, torch.from_numpy(weights / weights.sum()).float())

    def measure(
        self, context: StageContext, decoder: Decoder, memory: Memory, store: Datastore
    ) -> dict:
        """Return accuracy by cell and perplexity by group, each system at its best lambda."""
        return measure_atlas(context, decoder, memory, store)

    def measure_routed(self, context: StageContext, model: Callable[[], Model]) -> dict[str, dict]:
        """Return accuracy and perplexity of every system at its router's lambda."""
        routed, corpus = model(), context.inputs["corpus"]
        most = context.config.questions
        test = Test.load(corpus, routed.decoder.tokenizer, most, context.seed)
        return measure_routed(routed, test)

    def bundle_examples(
        self, model: Model, corpus: Path, config: ExportConfig, seed: int
    ) -> BundleExamples:
        """Return examples chosen by the answers, untrained questions, and recorded comparisons."""
        questions = read_lines(corpus / "questions.jsonl")
        random.Random(seed).shuffle(questions)
        examples, answered = find_examples(model, questions, config)
        abouts = read_lines(corpus / "abouts.jsonl")
        abouts = best_descriptions(model, abouts, questions, config.abouts)
        recorded = record(model, examples, abouts, config)
        return BundleExamples(examples, untrained(questions, config.questions), recorded, answered)

    def measurements(self, trial: Trial, systems: Sequence[str]) -> Iterator[Measurement]:
        """Yield exact match by cell and perplexity by group, at the best dev lambda."""
        recipe, decoder = trial.recipe, trial.decoder
        test = Test.load(trial.corpus, decoder.tokenizer, recipe.studies.questions, recipe.seed)
        k, temperature = recipe.evaluate.k, recipe.evaluate.temperature * trial.scale
        measured = test.measure(MeasuredModel(decoder, trial.memory, trial.store, k, temperature))
        yield from best_measurements(measured, systems)

    def measurements_by_mode(
        self, model: Model, corpus: Path, most: int, seed: int
    ) -> Iterator[Measurement]:
        """Yield exact match by cell, and by real or invented entities; perplexity by group."""
        test = Test.load(corpus, model.decoder.tokenizer, most, seed)
        questions, text = test.questions, test.text
        invented = np.array([row["invented"] for row in questions.rows])
        cells = np.array(questions.cells)
        splits = {cell: cells == cell for cell in dict.fromkeys(cells)}
        for name, mask in (("invented", invented), ("real", ~invented)):
            splits |= {f"{c}/{name}": m & mask for c, m in list(splits.items())[: len(set(cells))]}
        measured = measure_modes(model, questions.documents, questions.positions)
        for (system, mode), (right, _) in measured.items():
            exact = np.ones(len(cells), bool)
            np.logical_and.at(exact, questions.question_of, right)
            for split, mask in splits.items():
                if mask.any():
                    yield Measurement(system, split, "exact_match", share(exact[mask]), mode)
        positions = all_positions(text)
        groups, units = groups_of(text, positions), units_of(text, positions)
        for (system, mode), (_, nll) in measure_modes(model, text, positions).items():
            for group in [g for g in GROUPS if (groups == g).any()]:
                ppl = perplexity(nll[groups == group], units[groups == group])
                yield Measurement(system, f"{group}/text", "perplexity", ppl, mode)


def _tokens(config: AtlasOptions) -> tuple[int, int]:
    """Return estimated tokens of one draw and of the memory's part, at scale 1."""
    learned, defaults = ENTITIES["A1"] + ENTITIES["A2"], atlas_corpus.AtlasConfig
    per_draw = defaults.decoder_statements + defaults.decoder_questions
    odd = 1 + config.odd_words / 3  # odd words are long
    remembered = config.memory_statements + config.memory_questions
    known = 2 * config.known_wordings or remembered
    wordings = ENTITIES["A1"] * known + remembered * (
        ENTITIES["B"] + learned * config.memory_strangers
    )
    draw = per_draw * learned * (1 + config.strangers) * odd
    return round(WORDING_TOKENS * draw), round(WORDING_TOKENS * wordings)


def _plain_texts(atlas: atlas_corpus.Atlas, draws: int) -> Iterator[str]:
    """Yield the decoder's text in its first draws, without odd words."""
    plain = dataclasses.replace(atlas, config=dataclasses.replace(atlas.config, odd_words=0.0))
    for draw in range(draws):
        for _, segments in atlas_corpus.decoder_passages(plain, draw):
            yield from segments


def _save_part(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    passages: list[tuple[int, list[str]]],
    entities: list[tuple[str, str]],
) -> int:
    """Write one part's documents; return its number of tokens."""
    ids = encode_segments(tokenizer, [segments for _, segments in passages])
    pairs = [(entity, row) for (entity, _), row in zip(passages, ids, strict=True)]
    documents = join_passages(pairs, [title for title, _ in entities], [g for _, g in entities])
    documents.save(folder)
    return len(documents.tokens)
