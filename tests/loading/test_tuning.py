"""Lambda and temperature tuned on a text: own passages are left out, the best is chosen."""

import numpy as np
import pytest
import tiny
import torch

import mlpmem.loading.parts as tuning
from mlpmem.api import Model
from mlpmem.retrieval.datastore import Datastore, build_keys, make_store
from mlpmem.retrieval.documents import entries, join_passages
from mlpmem.retrieval.retriever import make_retriever


def model_and_store(passages: list[list[int]], k: int = 8) -> tuple[Model, object]:
    """Return a tiny model of these settings and the store of passages of token ids."""
    decoder = tiny.decoder()
    model = Model(decoder, None, tuning.Settings(k=k))
    documents = join_passages(list(enumerate(passages)), [""] * len(passages), [""] * len(passages))
    positions, counts = entries(documents)
    keys = build_keys(decoder, documents, positions)
    store = Datastore(keys, positions, counts, documents)
    return model, make_store(model.decoder, store, make_retriever("exact", keys))


def random_passages(count: int, length: int = 20) -> list[list[int]]:
    """Return passages of random token ids."""
    return np.random.default_rng(3).integers(5, 60, (count, length)).tolist()


def test_the_sample_search_equals_a_search_over_all_other_passages():
    model, store = model_and_store(random_passages(12))
    data, at = store.datastore, np.array([3, 40, 77, 150])
    lm, distances, correct, counts = tuning._search(model, store, at)
    documents = data.documents
    for q, entry in enumerate(at):
        own = documents.passage_at(data.positions[entry])
        others = np.flatnonzero(documents.passage_at(data.positions) != own)
        first, end = documents.offsets[own], data.positions[entry]
        ids = torch.tensor([documents.tokens[first:end].tolist()])
        output = model.decoder.forward(ids, last=1)
        apart = (data.keys[others].astype(np.float32) - output.hidden[0, 0].numpy()) ** 2
        near = np.argsort(apart.sum(1), kind="stable")[:8]
        assert distances[q].numpy() == pytest.approx(apart.sum(1)[near], rel=1e-3)
        assert correct[q].tolist() == (data.values[others[near]] == data.values[entry]).tolist()
        assert counts[q].tolist() == data.counts[others[near]].tolist()
        gold = output.logits[0, 0].softmax(-1)[int(data.values[entry])]
        assert float(lm[q]) == pytest.approx(-float(gold.log()), rel=1e-4)


def test_repeated_text_gets_a_high_lambda_and_noise_a_low_one():
    noise = random_passages(24)
    known = [[7, 8, 9] + random_passages(3)[i % 3] for i in range(24)]
    # passages need different first tokens, or their equal entries merge into one
    known = [[10 + i, *passage] for i, passage in enumerate(known)]
    repeated, random = (tuning.tuned(*model_and_store(p)).lmbda["knn"] for p in (known, noise))
    assert repeated > 0.5 > random


def test_the_chosen_settings_are_the_best_of_the_grid():
    model, store = model_and_store(random_passages(16))
    chosen = tuning.tuned(model, store)
    lm, distances, correct, counts = tuning._search(
        model, store, tuning._sample(store.datastore, 0)
    )  # fmt: skip

    def nll(temperature: float, lmbda: float) -> float:
        weights = torch.softmax(-distances / temperature + counts.log(), 1)
        return -float(((1 - lmbda) * (-lm).exp() + lmbda * (weights * correct).sum(1)).log().mean())

    best = nll(chosen.knn_temperature, chosen.lmbda["knn"])
    near = float(distances.mean())
    others = [nll(scale * near, x) for scale in tuning.SCALES for x in tuning.LMBDAS]
    assert best == pytest.approx(min(others), abs=1e-5)
    assert chosen.lmbda["memory"] == model.settings.lmbda["memory"]


def test_with_a_memory_lambda_is_tuned_and_the_temperature_stays():
    model, store = model_and_store([[5 + i, *range(20, 50)] for i in range(12)])
    without = tuning.tuned(model, store)
    with_memory = Model(model.decoder, tiny.memory(model.decoder), model.settings)
    found = tuning.tuned(with_memory, store)
    assert without.knn_temperature != model.settings.knn_temperature
    assert found.knn_temperature == model.settings.knn_temperature
    assert found.of("knn") > model.settings.of("knn") and found.of("memory") == 0.5


def test_a_store_of_few_passages_keeps_the_settings():
    model, store = model_and_store(random_passages(tuning.FEWEST - 1))
    assert tuning.tuned(model, store) == model.settings
