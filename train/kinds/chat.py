"""The corpus kind "chat": the atlas's facts as chats with a decoder that exists and can chat.

The decoder learns nothing. Groups are facts about real and about invented entities; of both the
decoder knows little. `kept` holds what the memory must leave to it.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch

from mlpmem.api import Model
from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.documents import Documents, join_documents, join_passages
from train.config.corpus import CorpusConfig
from train.config.load import HUB
from train.config.tables import ExportConfig, Recipe, RouterFitConfig
from train.corpora.atlas.chats import Facts, test_chats, training_chats
from train.corpora.atlas.wordings import AtlasConfig, build_atlas
from train.corpora.chat import ChatForm
from train.corpora.source import load_source
from train.files import read_lines, write_json, write_lines
from train.kinds.examples import is_right
from train.kinds.kept import write_kept
from train.measure.atlas import (
    CHAT_GROUPS,
    CHAT_WORDINGS,
    CHOOSING,
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

FACTS = 3008  # of the group, at scale 1
CHAT_TOKENS = 58  # of a chat with its answer
SHORT = 24  # new tokens of a recorded answer


class ChatKind(Kind):
    """Facts in chats: the memory's documents, questions in cells, and what must be kept."""

    name, has_questions = "chat", True
    distinct, hard = 0.1, 0.9  # only answers are entries

    def tokens(self, recipe: Recipe) -> tuple[int, int, int]:
        """Return tokens of all parts, of the decoder's whole training, of the memory's part."""
        options = recipe.corpus.chat
        facts = round(FACTS * recipe.corpus.scale)
        keyed = facts * (options.wordings + options.later + options.rivals + 1) * CHAT_TOKENS
        answered = options.general + options.naming + options.follow + 6 * options.held_out
        kept = answered * 2 * CHAT_TOKENS
        return keyed + kept + 2 * options.plain_tokens, 0, keyed

    def router_tokens(self, recipe: Recipe) -> int:
        """Return the tokens of dev questions and of what is kept."""
        options = recipe.corpus.chat
        kept = 3 * options.held_out * 2 * CHAT_TOKENS + options.plain_tokens // 4
        return 2 * recipe.router.questions * CHAT_TOKENS + kept

    def scored_tokens(self, recipe: Recipe, keyed: int) -> int:
        """Return the tokens of answers in all cells and of what is kept."""
        options = recipe.corpus.chat
        cells = len(CHAT_GROUPS) * (1 + len(CHAT_WORDINGS))
        kept = 3 * options.held_out * 2 * CHAT_TOKENS + options.plain_tokens // 4
        return cells * recipe.evaluate.questions * CHAT_TOKENS + kept

    def make(self, context: StageContext) -> dict:
        """Return counts; writes tokenizer/, memory/, heldout/, kept/ and questions.jsonl."""
        config, folder, seed = context.config, context.folder, context.seed
        decoder = _load_decoder(config)
        tokenizer = decoder.tokenizer
        form = ChatForm.of(tokenizer)
        options = AtlasConfig(seed=seed, scale=config.scale)
        facts = Facts(build_atlas(options), config.chat.invented)
        tokenizer.save_pretrained(folder / "tokenizer")
        remembered = _documents(facts, form, tokenizer, config, seed)
        remembered.save(folder / "memory")
        write_lines(folder / "questions.jsonl", _rows(facts, form, tokenizer, seed))
        write_json(folder / "attributions.json", facts.atlas.attributions)
        kept = write_kept(folder / "kept", decoder, form, facts, config, seed)
        Documents.load(folder / "kept" / "test").save(folder / "heldout")
        return {
            "tokens": len(remembered.tokens) + kept,
            "facts": len(facts.all),
            "real": sum(not facts.entity(fact).invented for fact in facts.all),
            "chats": len(remembered),
            "kept": kept,
        }

    def heldout(self, split: str) -> str:
        """Return the folder of what must be kept, of no training."""
        return "heldout"

    def router_data(
        self, corpus: Path, decoder: Decoder, config: RouterFitConfig, seed: int
    ) -> RouterData:
        """Return the answers to dev questions and what must be kept, each part a third.

        What must be kept is of dev and of training alike: few requests are held out for dev, and a
        memory imitates the decoder better on those of training.
        """
        rows = read_lines(corpus / "questions.jsonl")
        cells = [f"{group}/{CHOOSING}" for group in CHAT_GROUPS]
        cells += [f"{group}/second_{CHOOSING}" for group in CHAT_GROUPS]
        questions = encode_questions(
            decoder.tokenizer, sample_questions(rows, cells, config.questions, seed)
        )
        documents, parts = questions.documents, [questions.positions]
        for split in ("dev", "train"):
            kept = Documents.load(corpus / "kept" / split)
            parts.append(all_positions(kept) + len(documents.tokens))
            documents = join_documents(documents, kept)
        weights = np.concatenate([np.full(len(p), 1 / max(1, len(p))) for p in parts])
        positions = np.concatenate(parts)
        taught = torch.from_numpy(positions < len(questions.documents.tokens)).float()
        weights = torch.from_numpy(weights / weights.sum()).float()
        return RouterData(documents, positions, weights, taught)

    def measure(
        self, context: StageContext, decoder: Decoder, memory: Memory, store: Datastore
    ) -> dict:
        """Return accuracy by cell and perplexity by group, each system at its best lambda."""
        config = context.config
        test = _test(context.inputs["corpus"], decoder, config.questions, context.seed)
        return measure_atlas(context, decoder, memory, store, test)

    def measure_routed(self, context: StageContext, model: Callable[[], Model]) -> dict[str, dict]:
        """Return accuracy and perplexity of every system at its router's lambda."""
        routed, corpus = model(), context.inputs["corpus"]
        test = _test(corpus, routed.decoder, context.config.questions, context.seed)
        return measure_routed(routed, test)

    def bundle_examples(
        self, model: Model, corpus: Path, config: ExportConfig, seed: int
    ) -> BundleExamples:
        """Return questions about real and invented facts in turn, first those that are answered."""
        rows = [r for r in read_lines(corpus / "questions.jsonl") if r["wording"] == "test"]
        random.Random(seed).shuffle(rows)
        real = [row for row in rows if not row["invented"]]
        invented = [row for row in rows if row["invented"]]
        pairs = zip_longest(real, invented)
        rows = [row for pair in pairs for row in pair if row is not None]
        examples, answered, recorded = [], [], []
        for row in rows[: 4 * config.examples]:
            if len(examples) == config.examples:
                break
            question = row["turns"][-1][0]
            prompt = model.chat_ids(question, SHORT)
            traces = model.compare(prompt, ["lm", "memory"], max_new_tokens=SHORT)
            group = "helps" if is_right(traces["memory"].text, row) else "unknown"
            fields = {k: row[k] for k in ("answer", "aliases", "title", "invented")}
            example = {"name": row["title"], "group": group, "part": row["group"]}
            examples.append({**example, "prompt": question, **fields})
            answered.append(traces)
        examples.sort(key=lambda example: example["group"] != "helps")
        for example in examples[: config.traces]:
            traces = model.compare(model.chat_ids(example["prompt"], SHORT), max_new_tokens=SHORT)
            values = {name: trace.to_dict() for name, trace in traces.items()}
            row = {"v": 1, **{k: example[k] for k in ("name", "prompt", "answer")}}
            recorded.append(row | {"traces": values})
        questions = [
            {"prompt": row["turns"][-1][0], "part": row["group"]}
            | {k: row[k] for k in ("answer", "aliases", "title", "wording")}
            for row in rows[: config.questions]
        ]
        return BundleExamples(examples, questions, recorded, answered)

    def readable(self, documents: Documents, decoder: Decoder) -> Documents:
        """Return the distinct questions with answers, without the template around them.

        Chats of several turns only repeat questions of chats of one turn.
        """
        tokenizer, form = decoder.tokenizer, ChatForm.of(decoder.tokenizer)
        texts: dict[tuple[int, str], None] = {}  # (document, text)
        for p, document in enumerate(np.asarray(documents.document_of).tolist()):
            text = decoder.spelled(documents.passage(p).tolist()).removeprefix(form.before)
            question, _, answer = text.partition(form.answer)
            if form.question not in answer:
                texts[document, question + form.end + answer] = None
        ids = tokenizer([text for _, text in texts], add_special_tokens=False)["input_ids"]
        pairs = [(document, row) for (document, _), row in zip(texts, ids, strict=True)]
        return join_passages(pairs, documents.titles, documents.groups)

    def measurements(self, trial: Trial, systems: Sequence[str]) -> Iterator[Measurement]:
        """Yield exact match by cell and perplexity by group, at the best dev lambda."""
        recipe, decoder = trial.recipe, trial.decoder
        test = _test(trial.corpus, decoder, recipe.studies.questions, recipe.seed)
        k, temperature = recipe.evaluate.k, recipe.evaluate.temperature * trial.scale
        measured = test.measure(MeasuredModel(decoder, trial.memory, trial.store, k, temperature))
        yield from best_measurements(measured, systems)

    def measurements_by_mode(
        self, model: Model, corpus: Path, most: int, seed: int
    ) -> Iterator[Measurement]:
        """Yield exact match by cell, and perplexity by group."""
        test = _test(corpus, model.decoder, most, seed)
        questions, cells = test.questions, np.array(test.questions.cells)
        measured = measure_modes(model, questions.documents, questions.positions)
        for (system, mode), (right, _) in measured.items():
            exact = np.ones(len(cells), bool)
            np.logical_and.at(exact, questions.question_of, right)
            for cell in dict.fromkeys(cells):
                yield Measurement(system, cell, "exact_match", share(exact[cells == cell]), mode)
        positions = all_positions(test.text)
        groups, units = groups_of(test.text, positions), units_of(test.text, positions)
        for (system, mode), (_, nll) in measure_modes(model, test.text, positions).items():
            for group in dict.fromkeys(groups):
                ppl = perplexity(nll[groups == group], units[groups == group])
                yield Measurement(system, f"{group}/text", "perplexity", ppl, mode)


def _load_decoder(config: CorpusConfig) -> Decoder:
    """Return the decoder whose chats they are; MlpMemError if the recipe names none."""
    if not config.tokenizer:
        raise MlpMemError(
            'corpus: kind = "chat" must have a decoder that exists; give [decoder] source = a '
            f'folder, a GGUF file or "{HUB}owner/name", and epochs = 0'
        )
    return load_source(config.tokenizer)


def _documents(
    facts: Facts, form: ChatForm, tokenizer, config: CorpusConfig, seed: int
) -> Documents:
    """Return the memory's chats, one document per entity, those of fewer turns first."""
    chats = list(training_chats(facts, config.chat, seed))
    random.Random(f"{seed}/order").shuffle(chats)
    chats.sort(key=lambda chat: len(chat.turns))  # one that others begin with comes before them
    encoded = form.encode(tokenizer, [chat.turns for chat in chats])
    entities = list(dict.fromkeys(chat.entity for chat in chats))
    number = {entity: i for i, entity in enumerate(entities)}
    known = [facts.atlas.entities[entity] for entity in entities]
    pairs = [(number[c.entity], ids) for c, (ids, _) in zip(chats, encoded, strict=True)]
    groups = ["invented" if entity.invented else "real" for entity in known]
    return join_passages(pairs, [e.title for e in known], groups, [head for _, head in encoded])


def _rows(facts: Facts, form: ChatForm, tokenizer, seed: int) -> Iterator[dict]:
    """Yield the rows of questions.jsonl, with their token ids."""
    rows = test_chats(facts, seed)
    chats = [[*row["turns"][:-1], (row["turns"][-1][0], row["answer"])] for row in rows]
    for row, (ids, head) in zip(rows, form.encode(tokenizer, chats), strict=True):
        yield {**row, "ids": ids, "prompt_tokens": head}


def _test(corpus: Path, decoder: Decoder, most: int, seed: int) -> Test:
    """Return the questions and the kept text that are measured."""
    return Test.load(corpus, decoder.tokenizer, most, seed, CHAT_GROUPS, CHAT_WORDINGS)
