"""Does a datastore of a person's own text answer, and leave other answers alone?

Forty short texts (own_texts.toml), each with three questions in other words. Answers are generated
greedily in the chat, with the plain kNN-LM at its fixed lambda, and with the search and gate of own
texts. "found": the sentence of the first token's nearest entry has the answer. "right": the
generated text has it. Other requests are asked beside a store of texts; their perplexity is that of
the decoder's own answers.
"""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlpmem.api import Model
from mlpmem.engine.settings import Settings
from mlpmem.engine.trace import AUTO
from mlpmem.retrieval.datastore import Store
from train.corpora.atlas.chats import request_texts
from train.files import print_line
from train.measure.findings import Finding, perplexity, share
from train.studies.run import Run

TEXTS_FILE = Path(__file__).with_name("own_texts.toml")
SEEN = 13  # texts by which the search's constants were chosen; the others were not looked at
TOKENS = 32  # of an answer
REQUESTS, BESIDE = 100, 4  # other requests, and texts of the store beside them
SYSTEMS = {"plain": True, "gated": False}


def own_text(run: Run) -> Iterator[Finding]:
    """Yield what is found and right, by system, and what other requests lose."""
    model = Model(run.decoder, None, Settings(), questions=run.kind.has_questions)
    texts = tomllib.loads(TEXTS_FILE.read_text(encoding="utf-8"))["text"]
    for name, plain in SYSTEMS.items():
        yield from _answers(run, model, texts, name, plain)
        yield from _others(run, model, texts, name, plain)


def _answers(
    run: Run, model: Model, texts: list[dict], name: str, plain: bool
) -> Iterator[Finding]:
    """Yield the shares of one system, of texts that were looked at and of the others."""
    rows: list[tuple[int, bool, bool]] = []
    for number, text in enumerate(texts):
        store = model.store_texts([("text", text["text"])], plain=plain)
        for question, answer in text["questions"]:
            trace = model.generate(
                model.chat_ids(question, TOKENS), "knn", store=store, max_new_tokens=TOKENS
            )
            near = sentence_of(model, store, trace.steps[0].neighbours[0].entry)
            rows.append((number, has(near, answer), has(trace.text, answer)))
    number, found, right = (np.array(column) for column in zip(*rows, strict=True))
    for split, chosen in (("looked at", number < SEEN), ("others", number >= SEEN)):
        yield run.finding(name, split, "found", share(found[chosen]))
        yield run.finding(name, split, "right", share(right[chosen]))
        yield run.finding(name, split, "right of found", share(right[chosen & found]))
    print_line(f"own_text: {name}: {right.sum()} of {len(right)} right")


def sentence_of(model: Model, store: Store, entry: int) -> str:
    """Return the passage of an entry; a sentence, but of a plain store."""
    datastore = store.datastore
    at = datastore.documents.passage_at(datastore.positions[entry : entry + 1])
    return model.decoder.decode(datastore.documents.passage(int(at[0])).tolist())


def has(text: str, answer: str) -> bool:
    """Return whether a text has an answer, in any case."""
    return answer.casefold() in text.casefold()


def _others(run: Run, model: Model, texts: list[dict], name: str, plain: bool) -> Iterator[Finding]:
    """Yield what requests on other subjects lose beside a store: unchanged answers, perplexity."""
    rows = [(f"text {i}", text["text"]) for i, text in enumerate(texts[:BESIDE])]
    store = model.store_texts(rows, plain=plain)
    same, alone, beside = [], [], []
    for request in request_texts("general", (), REQUESTS, run.recipe.seed):
        asked = model.chat_ids(request, TOKENS)
        texts_of = model.compare(asked, ["lm", "knn"], store=store, max_new_tokens=TOKENS)
        same.append(texts_of["lm"].text == texts_of["knn"].text)
        lm, mixed = _nll(model, store, asked, texts_of["lm"], plain)
        alone.append(lm)
        beside.append(mixed)
    yield run.finding(name, "requests", "unchanged", share(same))
    yield run.finding("lm", "requests", "perplexity", perplexity(np.concatenate(alone)))
    yield run.finding(name, "requests", "perplexity", perplexity(np.concatenate(beside)))


def _nll(model: Model, store: Store, asked: list[int], trace: Any, plain: bool) -> tuple:
    """Return the nll (T,) of the decoder's answer by the decoder, and by the mix."""
    count = len(trace.steps)
    score = model.score([*asked, *(step.token_id for step in trace.steps)], store)
    lmbda = None if plain else AUTO
    return score.nll["lm"][-count:], score.mixed("knn", lmbda)[-count:]
