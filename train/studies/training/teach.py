"""Train an existing memory or decoder on new documents, and make new facts to learn.

A memory is trained by its own loss, a decoder in full or by LoRA. New facts are about people, towns
and books that no corpus has, in the atlas's wordings.
"""

import dataclasses
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.documents import Documents, join_documents, join_passages
from train.config.studies import StudiesConfig
from train.config.tables import Recipe
from train.corpora.atlas import passages as atlas_corpus
from train.corpora.atlas.strangers import strangers
from train.corpora.atlas.wordings import Atlas, AtlasConfig, word_fact
from train.corpora.tokenizer import encode_segments
from train.fit.loop import fit
from train.measure.questions import Questions, encode_questions, sample_questions
from train.stages.decoder import finetune, training_parts
from train.stages.memory import make_loss
from train.stages.targets import SearchedTargets
from train.studies.run import Run

RANK = 16  # of LoRA's matrices, at every linear layer except the head


@dataclass(frozen=True)
class Lesson:
    """One way to train a decoder on new documents."""

    system: str  # "finetuned": all weights, or "lora"
    lr: float
    replay: float  # old tokens per new token


def decoder_lessons(config: StudiesConfig) -> Iterator[Lesson]:
    """Yield both systems, each on the new text only and with old text replayed."""
    for system, lr in (("finetuned", 1e-3), ("lora", 4e-3)):
        for replay in (0.0, config.replay):
            yield Lesson(system, lr, replay)


def teach_memory(run: Run, memory: Memory, store: Datastore, old: int, replay: float) -> int:
    """Train a memory in place on the entries of `store` from `old` on; return the rows learned.

    replay: old rows, drawn from the stage targets, per new row.
    """
    new = np.arange(old, len(store))
    rng = np.random.default_rng(run.recipe.seed)
    run.manifest("targets")
    known = np.load(run.root / "targets" / "rows.npy", allow_pickle=False)
    replayed = rng.choice(known, min(len(known), round(replay * len(new))), replace=False)
    entries = np.sort(np.concatenate([new, replayed]))
    targets = SearchedTargets(store, entries, run.recipe.targets)
    token_ids, probs = targets.rows(np.arange(len(entries)))
    rows = {
        "keys": torch.from_numpy(np.asarray(store.keys[entries], np.float32)),
        "targets": torch.from_numpy(store.values[entries].astype(np.int64)),
        "token_ids": torch.from_numpy(token_ids),
        "probs": torch.from_numpy(probs),
    }
    config = run.recipe.memory
    memory.requires_grad_(True).to(getattr(torch, config.dtype))
    passes, per_pass = run.config.passes, max(1, len(entries) // run.config.update_batch)
    orders = [rng.permutation(len(entries)) for _ in range(passes)]

    def batches(step: int, rank: int, world: int) -> dict[str, Tensor]:
        order = np.array_split(orders[step // per_pass], per_pass)[step % per_pass]
        at = torch.from_numpy(order[rank::world])
        return {name: values[at] for name, values in rows.items()}

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.safetensors"
        loss = make_loss(memory, config)
        fit(memory, batches, loss, passes * per_pass, config.optimizer, path, "update")
    memory.float()
    return len(entries)


def teach_decoder(run: Run, decoder: Decoder, documents: Documents, lesson: Lesson) -> int:
    """Train a decoder in place on documents; return the tokens of one pass.

    LoRA computes in float32, so that the frozen weights keep their exact values.
    """
    recipe, model = run.recipe.decoder, decoder.model.requires_grad_(True)
    if lesson.system == "lora":
        add_lora(model, RANK)
    else:
        model.to(getattr(torch, recipe.dtype))
    if lesson.replay:
        count = round(lesson.replay * len(documents.tokens))
        old = Documents.load(training_parts(run.root / "corpus")[0])
        documents = join_documents(documents, sample_passages(old, count, run.recipe.seed))
    config = replace(recipe, batch=run.config.update_batch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.safetensors"
        finetune(model, documents, config, lesson.lr, run.config.passes, path)
    model.float().requires_grad_(False)
    return len(documents.tokens)


def check_lora() -> None:
    """Raise MlpMemError unless peft is installed."""
    if find_spec("peft") is None:
        raise MlpMemError(
            "update: LoRA needs the package peft, which is not installed; `pip install peft`, or "
            '`pip install -e ".[train]"`'
        )


def add_lora(model: nn.Module, rank: int) -> None:
    """Add LoRA to every linear layer except the head, in place; only LoRA is trainable."""
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"), model
    )


def sample_passages(documents: Documents, tokens: int, seed: int) -> Documents:
    """Return whole passages drawn by seed, with at least `tokens` tokens or all there are."""
    order = np.random.default_rng(seed).permutation(len(documents))
    ends = np.cumsum(np.diff(documents.offsets)[order])
    passages = order[: int(np.searchsorted(ends, tokens)) + 1]
    pairs = [(int(documents.document_of[p]), documents.passage(p).tolist()) for p in passages]
    return join_passages(pairs, documents.titles, documents.groups)


INVENTED = ("person", "town", "book")  # kinds of entity
GROUP = "B"  # with as many wordings per fact as facts that decoders never see
WORDINGS = ("new/seen", "new/test", "new/unseen", "new/statement_test")


@dataclass(frozen=True)
class NewFacts:
    """Documents with new facts, and questions about them."""

    facts: int
    documents: Documents
    questions: Questions  # of the cells WORDINGS


def make_facts(recipe: Recipe, tokenizer, least: int, most: int) -> NewFacts:
    """Return at least `least` new facts (whole entities), at most `most` questions a wording.

    No entity has these names; answers come from the decoder's entities.
    """
    options = dataclasses.asdict(recipe.corpus.atlas)
    config = AtlasConfig(seed=recipe.seed, scale=recipe.corpus.scale, **options)
    new = _new_atlas(atlas_corpus.build_atlas(config), least)
    passages = list(atlas_corpus.memory_passages(new))
    ids = encode_segments(tokenizer, [segments for _, segments in passages])
    pairs = [(entity, row) for (entity, _), row in zip(passages, ids, strict=True)]
    titles = [entity.title for entity in new.entities]
    documents = join_passages(pairs, titles, [GROUP] * len(titles))
    rows = [row | {"group": "new"} for row in atlas_corpus.questions(new)]
    sample = sample_questions(rows, list(WORDINGS), most, recipe.seed)
    return NewFacts(len(new.facts), documents, encode_questions(tokenizer, sample))


def _new_atlas(atlas: Atlas, least: int) -> Atlas:
    """Return an atlas of strangers only, with at least `least` facts."""
    config = atlas.config
    candidates = strangers(atlas.entities, f"{config.seed}/update", 0.5)
    candidates = [entity for entity in candidates if entity.kind in INVENTED]
    random.Random(f"{config.seed}/update").shuffle(candidates)
    entities, facts = [], []
    for entity in candidates:
        if len(facts) >= least:
            break
        entities.append(replace(entity, group=GROUP))
        facts += [
            word_fact(config, atlas.forms[relation], len(entities) - 1, entities[-1], relation)
            for relation in atlas.forms
            if relation in entity.answers
        ]
    return replace(atlas, entities=entities, facts=facts)
