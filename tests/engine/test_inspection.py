"""Inspecting a text, probing a token and leaving neighbours out, against the model's own passes."""

import numpy as np
import pytest
import tiny

from mlpmem.engine import scoring
from mlpmem.engine.trace import OTHER, Step
from mlpmem.errors import MlpMemError
from mlpmem.model.tokenizer import continuation_ids
from mlpmem.retrieval.text_search import STRANGER

TEXT = "The capital of Peru is Lima."


def inspected(model, text=TEXT, **options):
    *progress, done = model.inspect(text, **options)
    return progress, next(iter(done.values.values()))


def test_every_token_gets_the_probabilities_of_its_own_pass(tiny_model, monkeypatch):
    monkeypatch.setattr(scoring, "INSPECTED", 7)
    progress, trace = inspected(tiny_model, lmbda=0.3)
    ids = tiny_model.decoder.encode(TEXT)
    assert trace.prompt_ids + [step.token_id for step in trace.steps] == ids
    assert trace.text == TEXT == "".join(step.text for step in trace.steps)
    assert [e.values["done"] for e in progress][-1] == progress[-1].values["total"] == len(ids) - 1
    score = tiny_model.score(TEXT)
    for source in ("lm", "memory", "knn"):
        actual = [step.probs[source] for step in trace.steps]
        np.testing.assert_allclose(actual, np.exp(-score.nll[source]), rtol=1e-4, atol=1e-7)
    for step in trace.steps:
        mixed = 0.7 * step.probs["lm"] + 0.3 * step.probs["memory"]
        assert step.probs["fused"] == pytest.approx(mixed, rel=1e-6)


def test_a_text_too_short_or_too_long_is_refused_before_the_pass(tiny_model):
    with pytest.raises(MlpMemError, match="must have two tokens or more"):
        tiny_model.inspect("")
    with pytest.raises(MlpMemError, match="at most 96 tokens"):
        tiny_model.inspect("x" * 200)


def test_a_cancelled_inspection_ends_without_a_trace(tiny_model):
    class Stop:
        def is_set(self):
            return True

    assert list(tiny_model.inspect(TEXT, cancel=Stop())) == []


def test_a_named_word_has_the_product_of_its_tokens_with_and_without_a_space(tiny_model):
    ids = tiny_model.decoder.encode("Peru is")
    rows = tiny_model.probe(ids, "the cat")
    assert [row["named"] for row in rows] == [" the cat", "the cat"]
    for row in rows:
        before, whole = list(ids), dict.fromkeys(("lm", "memory", "knn"), 1.0)
        tokens = continuation_ids(tiny_model.decoder.tokenizer, row["named"])
        assert row["id"] == tokens[0] and len(row["tokens"]) == len(tokens) > 1
        for token, probs in zip(tokens, row["tokens"], strict=True):
            spread = tiny_model.distributions(before)
            for source, p in probs.items():
                assert p == pytest.approx(float(spread[source][token].exp()), rel=1e-4)
                whole[source] *= p
            before.append(token)
        assert row["p"] == pytest.approx(whole)
    with pytest.raises(MlpMemError, match="the token must have a text"):
        tiny_model.probe(ids, "")


def without(step: Step, left: set[int]) -> dict[int, float]:
    """The kNN distribution over the candidates and OTHER without the listed neighbours `left`."""
    candidates = {c.token_id for c in step.candidates}
    mass = dict(step.unshown)
    for i, neighbour in enumerate(step.neighbours):
        if i not in left:
            key = neighbour.target_id if neighbour.target_id in candidates else OTHER
            mass[key] = mass.get(key, 0.0) + neighbour.weight
    total = sum(mass.values())
    return {key: value / total for key, value in mass.items()}


def test_listed_and_unlisted_neighbours_sum_to_the_knn_distribution():
    _, trace = inspected(tiny.model(k=40))
    for step in trace.steps:
        actual = without(step, set())
        for c in step.candidates:
            assert actual.get(c.token_id, 0.0) == pytest.approx(c.probs["knn"], rel=1e-4, abs=1e-9)
        assert actual.get(OTHER, 0.0) == pytest.approx(step.rest["knn"], abs=1e-5)


def test_leaving_the_nearest_out_equals_a_softmax_over_the_others():
    model = tiny.model(k=24)
    _, trace = inspected(model)
    step = trace.steps[9]
    read = Step.from_dict(step.to_dict(), "knn", 0.5)
    store = model.store
    ids = model.decoder.encode(TEXT)[:10]
    import torch

    hidden = model.decoder.forward(torch.tensor([ids])).hidden[:, -1]
    found = store.retriever.search(hidden, 24)
    out = {n.entry for i, n in enumerate(step.neighbours) if i in (0, 2)}
    scores: dict[int, float] = {}
    nearest = float(found.distances.min())
    for entry, distance in zip(found.indices[0].tolist(), found.distances[0].tolist(), strict=True):
        if entry in out:
            continue
        w = store.datastore.counts[entry] * np.exp((nearest - distance) / 3.0)
        token = int(store.datastore.values[entry])
        scores[token] = scores.get(token, 0.0) + float(w)
    total = sum(scores.values())
    actual = without(read, {0, 2})
    for c in step.candidates:
        expected = scores.get(c.token_id, 0.0) / total
        assert actual.get(c.token_id, 0.0) == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_a_store_given_to_a_call_does_not_change_the_model(tiny_model):
    text = "Zorblat is the capital of the moon."
    seen = []
    store = tiny_model.store_texts([("mine", text)], progress=lambda done, total: seen.append(done))
    assert seen and tiny_model.store is not store
    own = tiny_model.score(text, store).perplexity("knn", 1.0)
    assert own < 1.5 < tiny_model.score(text).perplexity("knn", 0.9)
    trace = tiny_model.generate("Zorblat is", "knn", store=store, lmbda=1.0, max_new_tokens=4)
    assert trace.text == " the cap"[: len(trace.text)]
    assert {n.title for step in trace.steps for n in step.neighbours} == {"mine"}
    _, trace = inspected(tiny_model, text, system="knn", store=store)
    assert {n.title for step in trace.steps for n in step.neighbours} == {"mine"}
    with pytest.raises(MlpMemError, match="stopped"):
        tiny_model.store_texts([("mine", text)], stop=lambda: True)


def test_the_corpus_is_searched_by_words_with_titles_first(tiny_model):
    corpus = tiny_model.corpus()
    hits, count = corpus.search("CAPITAL peru")
    assert [hit.title for hit in hits] == ["Peru"] and count == 1
    assert f"{hits[0].before}{hits[0].match}{hits[0].after}".startswith("The capital of Peru")
    assert [hit.title for hit in corpus.search("au")[0]] == ["Gold"]
    hits, count = corpus.search("is", limit=1)
    assert len(hits) == 1 and count == 3
    title, group, passages = corpus.document(1)
    assert (title, group, len(passages)) == ("Vellmar", "B", 2)
    assert corpus.search("nowhere") == ([], 0)
    first = corpus.search("is")[0][0].document
    corpus.groups = [STRANGER if i == first else group for i, group in enumerate(corpus.groups)]
    assert corpus.search("is")[0][-1].document == first, "a document of strangers comes last"
    for wrong in (lambda: corpus.search(" "), lambda: corpus.document(9)):
        with pytest.raises(MlpMemError):
            wrong()


def test_control_tokens_are_parsed_only_if_asked(tiny_model):
    end = min(tiny_model.decoder.special_ids)
    text = f"the{tiny_model.decoder.pieces[end]} mayor"
    for special in (False, True):
        _, trace = inspected(tiny_model, text, special=special)
        assert ([step.token_id for step in trace.steps].count(end) == 1) is special
