"""The kind of corpus "atlas": facts in groups that the decoder knows and does not, asked about.

Open `train/corpora/atlas` for how it is made up. A1 and A2 are facts that the decoder learns, B are
those that only the memory learns.
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
from train.config.tables import AtlasOptions, ExportConfig, Recipe, RouterFitConfig
from train.corpora.atlas import passages as atlas_corpus
from train.corpora.tokenizer import encode_segments, train_tokenizer
from train.files import read_lines, write_json, write_lines
from train.measure.atlas import (
    CHOOSING,
    GROUPS,
    MeasuredModel,
    Test,
    choose_lambda,
    curve,
    measure_atlas,
)
from train.measure.by_token import by_token
from train.measure.by_token import measure as measure_modes
from train.measure.findings import perplexity, share
from train.measure.questions import ask, sample_questions
from train.measure.text import all_positions, groups_of, units_of
from train.run.kinds import Kind, Measurement, Seen, Shown, Trial
from train.run.stage import StageContext
from train.stages.examples import find_examples, record, telling_abouts, untrained

TOKENIZER_DRAWS = 2  # wordings differ between draws; two show the tokenizer nearly all words
ENTITIES = {"A1": 1154, "A2": 1155, "B": 771}  # at scale 1
WORDING = 80  # tokens an entity's facts take in one wording each
HELD_OUT = 265_000  # tokens of the held-out documents at scale 1
HELD_OUT_SHARE = 33  # tokens of the held-out documents per hundred of the memory's
ASKED = 16  # tokens of a question with its answer


class AtlasKind(Kind):
    """Facts with their questions: the decoder's draws, the memory's documents, held-out text."""

    name, asks = "atlas", True
    distinct, hard = 0.68, 0.25

    def tokens(self, recipe: Recipe) -> tuple[int, int, int]:
        """Return tokens of all parts, those the decoder learns in all draws, the memory's."""
        config = recipe.corpus
        draw, memory = (round(tokens * config.scale) for tokens in _tokens(config.atlas))
        draws = (draw + config.together * memory) * config.draws
        whole = draws + memory + round(HELD_OUT * config.scale)
        return whole, recipe.decoder.epochs * draws, memory

    def seen_tokens(self, recipe: Recipe) -> int:
        """Return tokens of questions and statements of three groups."""
        return 6 * recipe.router.questions * ASKED

    def scored_tokens(self, recipe: Recipe, keyed: int) -> int:
        """Return tokens of answers in all cells, and of held-out text."""
        return 12 * recipe.evaluate.questions * 4 + HELD_OUT_SHARE * keyed // 100

    def make(self, context: StageContext) -> dict:
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
        groups = {g: sum(e.group == g for e in atlas.entities) for g in GROUPS}
        whole = {"tokens": sum(counts.values()), "facts": len(atlas.facts), "entities": groups}
        return whole | counts

    def heldout(self, split: str) -> str:
        """Return the one folder of held-out text, whatever the split."""
        return "heldout"

    def see(self, corpus: Path, decoder: Decoder, config: RouterFitConfig, seed: int) -> Seen:
        """Return every token of questions and statements in their dev wordings.

        Groups count alike; within a group a token of an answer counts `answers` times as much as
        another.
        """
        cells = [f"{g}/{w}" for g in GROUPS for w in (CHOOSING, f"statement_{CHOOSING}")]
        rows = sample_questions(
            read_lines(corpus / "questions.jsonl"), cells, config.questions, seed
        )
        questions = ask(decoder.tokenizer, rows)
        documents = questions.documents
        positions = all_positions(documents)
        groups = groups_of(documents, positions)
        weights = np.where(np.isin(positions, questions.positions), config.answers, 1.0)
        for group in set(groups):
            weights[groups == group] /= weights[groups == group].sum()
        return Seen(documents, positions, torch.from_numpy(weights / weights.sum()).float())

    def measure(
        self, context: StageContext, decoder: Decoder, memory: Memory, store: Datastore
    ) -> dict:
        """Return accuracy by cell and perplexity by group, each source at its best lambda."""
        return measure_atlas(context, decoder, memory, store)

    def by_token(self, context: StageContext, model: Callable[[], Model]) -> dict[str, dict]:
        """Return accuracy and perplexity of every system under its router's lambda."""
        routed, corpus = model(), context.inputs["corpus"]
        most = context.config.questions
        return by_token(routed, Test.load(corpus, routed.decoder.tokenizer, most, context.seed))

    def show(self, model: Model, corpus: Path, config: ExportConfig, seed: int) -> Shown:
        """Return examples found by asking, untrained questions, and recorded comparisons."""
        questions = read_lines(corpus / "questions.jsonl")
        random.Random(seed).shuffle(questions)
        examples, answered = find_examples(model, questions, config)
        abouts = read_lines(corpus / "abouts.jsonl")
        abouts = telling_abouts(model, abouts, questions, config.abouts)
        recorded = record(model, examples, abouts, config)
        return Shown(examples, untrained(questions, config.questions), recorded, answered)

    def measurements(self, trial: Trial, systems: Sequence[str]) -> Iterator[Measurement]:
        """Yield exact match by cell and perplexity by group at the lambda of dev questions."""
        recipe, decoder = trial.recipe, trial.decoder
        test = Test.load(trial.corpus, decoder.tokenizer, recipe.studies.questions, recipe.seed)
        k, temperature = recipe.evaluate.k, recipe.evaluate.temperature * trial.scale
        measured = test.measure(MeasuredModel(decoder, trial.memory, trial.store, k, temperature))
        for system in systems:
            lmbda = 0.0 if system == "lm" else choose_lambda(curve(measured, system))
            source = "memory" if system == "lm" else system  # lambda 0 of any is the decoder
            for cell, count in measured.accuracy(source, lmbda).items():
                right = share(np.arange(count["n"]) < count["right"])
                yield Measurement(system, cell, "exact_match", right, lmbda)
            nll = measured.text.nll(source, lmbda)
            for group in dict.fromkeys(measured.text_groups.tolist()):
                mine = measured.text_groups == group
                found = perplexity(nll[mine], measured.text_units[mine])
                yield Measurement(system, group, "perplexity", found, lmbda)

    def measurements_by_mode(
        self, model: Model, corpus: Path, most: int, seed: int
    ) -> Iterator[Measurement]:
        """Yield exact match by cell, real and invented entities apart; perplexity by group."""
        test = Test.load(corpus, model.decoder.tokenizer, most, seed)
        questions, text = test.questions, test.text
        invented = np.array([row["invented"] for row in questions.rows])
        cells = np.array(questions.cells)
        splits = {cell: cells == cell for cell in dict.fromkeys(cells)}
        for name, mask in (("invented", invented), ("real", ~invented)):
            splits |= {f"{c}/{name}": m & mask for c, m in list(splits.items())[: len(set(cells))]}
        asked = measure_modes(model, questions.documents, questions.positions)
        for (system, mode), (right, _) in asked.items():
            whole = np.ones(len(cells), bool)
            np.logical_and.at(whole, questions.question_of, right)
            for split, mask in splits.items():
                if mask.any():
                    yield Measurement(system, split, "exact_match", share(whole[mask]), mode)
        positions = all_positions(text)
        groups, of = groups_of(text, positions), units_of(text, positions)
        for (system, mode), (_, nll) in measure_modes(model, text, positions).items():
            for group in [g for g in GROUPS if (groups == g).any()]:
                found = perplexity(nll[groups == group], of[groups == group])
                yield Measurement(system, f"{group}/text", "perplexity", found, mode)


def _tokens(config: AtlasOptions) -> tuple[int, int]:
    """Return about how many tokens a draw and the memory's part of a whole atlas have."""
    read, usual = ENTITIES["A1"] + ENTITIES["A2"], atlas_corpus.AtlasConfig
    said = usual.decoder_statements + usual.decoder_questions
    odd = 1 + config.odd_words / 3  # odd words are long
    remembered = config.memory_statements + config.memory_questions
    known = 2 * config.known_wordings or remembered
    wordings = ENTITIES["A1"] * known + remembered * (
        ENTITIES["B"] + read * config.memory_strangers
    )
    return round(WORDING * said * read * (1 + config.strangers) * odd), round(WORDING * wordings)


def _plain_texts(atlas: atlas_corpus.Atlas, draws: int) -> Iterator[str]:
    """Yield what the decoder reads in its first draws, without the odd words."""
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
    """Write one part's Documents; return its tokens."""
    ids = encode_segments(tokenizer, [segments for _, segments in passages])
    pairs = [(entity, row) for (entity, _), row in zip(passages, ids, strict=True)]
    documents = join_passages(pairs, [title for title, _ in entities], [g for _, g in entities])
    documents.save(folder)
    return len(documents.tokens)
