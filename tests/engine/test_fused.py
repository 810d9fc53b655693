"""The mix: its ends, its normalisation, and what it refuses."""

import pytest
import tiny
import torch

from mlpmem.api import Model
from mlpmem.engine.fused import LABELS, Settings, _check_numbers
from mlpmem.errors import MlpMemError
from mlpmem.retrieval.retriever import Neighbours, make_retriever

PROMPT = "The capital of Peru"


def test_every_source_and_the_mix_are_distributions(tiny_model):
    actual = tiny_model.distributions(PROMPT, lmbda=0.3)
    assert list(actual) == ["lm", "memory", "knn", "fused"]
    for log_probs in actual.values():
        assert log_probs.shape == (tiny_model.decoder.vocab_size,)
        assert float(log_probs.exp().sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_nan_is_found_wherever_it_is_and_nothing_else_is_taken_for_it(seed):
    names = ("lm", "memory", "knn")
    rng = torch.Generator().manual_seed(seed)
    shape = 3, 1 + seed, 3 + 997 * (seed % 3)  # (S, R, V)
    log_probs = torch.randn(shape, generator=rng).log_softmax(-1)
    log_probs[2, :, 1:] = -torch.inf  # what the datastore says of tokens of no neighbour
    log_probs[1, 0, :2] = torch.finfo(torch.float32).min  # their sum overflows
    _check_numbers(names, log_probs)
    for s, name in enumerate(names):
        damaged = log_probs.clone()
        at = [int(torch.randint(n, (), generator=rng)) for n in shape[1:]]
        damaged[s, at[0], at[1]] = torch.nan
        with pytest.raises(MlpMemError, match=f"{LABELS[name]} gives values that are not numbers"):
            _check_numbers(names, damaged)


@pytest.mark.parametrize("system", ["memory", "knn"])
def test_lambda_0_is_the_decoder_and_lambda_1_the_other_source_bit_for_bit(system, tiny_model):
    ids = torch.tensor([tiny_model.decoder.encode(PROMPT)])
    logits = tiny_model.decoder.forward(ids, last=1).logits[0, -1]
    zero = tiny_model.distributions(PROMPT, lmbda=0.0, system=system)
    assert torch.equal(zero["fused"], torch.log_softmax(logits.float(), -1))
    one = tiny_model.distributions(PROMPT, lmbda=1.0, system=system)
    assert torch.equal(one["fused"], one[system])
    assert torch.equal(one["lm"], zero["lm"])


def test_every_source_equals_its_definition(tiny_model):
    decoder, memory, store = tiny_model.decoder, tiny_model.memory, tiny_model.datastore
    output = decoder.forward(torch.tensor([decoder.encode(PROMPT)]))
    hidden = output.hidden[0, -1]
    probs = torch.zeros(decoder.vocab_size, dtype=torch.float64)
    keys = torch.from_numpy(store.keys).double()
    distances = (keys - hidden.double()).square().sum(1)
    for i in distances.argsort()[: tiny_model.settings.k].tolist():
        weight = torch.exp(-distances[i] / tiny_model.settings.knn_temperature)
        probs[int(store.values[i])] += int(store.counts[i]) * weight
    knn = probs / probs.sum()
    lm, own = (x.double().softmax(-1) for x in (output.logits[0, -1], memory(hidden)))
    actual = tiny_model.distributions(PROMPT, lmbda=0.3, system="knn")
    for log_probs, exact in ((actual["lm"], lm), (actual["memory"], own), (actual["knn"], knn)):
        torch.testing.assert_close(log_probs.exp().double(), exact, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(
        actual["fused"].exp().double(), 0.7 * lm + 0.3 * knn, atol=1e-5, rtol=1e-3
    )


def test_the_memorys_temperature_divides_its_logits():
    decoder = tiny.decoder()
    memory = tiny.memory(decoder)
    actual = Model(decoder, memory, Settings(memory_temperature=2.0)).distributions(PROMPT)
    hidden = decoder.forward(torch.tensor([decoder.encode(PROMPT)])).hidden[0, -1]
    torch.testing.assert_close(actual["memory"], torch.log_softmax(memory(hidden) / 2, -1))


def test_a_model_without_memory_or_datastore_has_fewer_systems():
    model = Model(tiny.decoder())
    assert model.systems == ["lm"]
    assert set(model.distributions(PROMPT)) == {"lm", "fused"}
    for system in ("memory", "knn", "rag"):
        with pytest.raises(MlpMemError, match=f"system '{system}' is not available, only lm;"):
            model.distributions(PROMPT, system=system)


def test_a_datastore_can_be_attached_later_and_calls_under_way_do_not_use_it():
    model = Model(tiny.decoder(), tiny.memory(tiny.decoder()), Settings(k=4))
    events = model.stream(PROMPT, max_new_tokens=3)
    next(events)
    store = tiny.datastore(model.decoder)
    model.attach_datastore(store, make_retriever("flat", store.keys))
    assert model.systems == ["lm", "memory", "knn"]
    *_, done = events
    assert list(done.values) == ["lm", "memory"]
    assert "knn" not in done.values["lm"].steps[-1].probs


@pytest.mark.parametrize("kind", ["exact", "flat", "ivfpq"])
def test_the_datastores_size_counts_its_keys_once(kind):
    model = tiny.model(retriever=kind)
    store = model.datastore
    entries = store.bytes - store.keys.nbytes
    index = model.retriever.bytes if kind == "ivfpq" else 0
    assert model.store.bytes == entries + store.keys.nbytes + index


def test_keys_of_another_size_are_refused(tiny_model):
    store = tiny.datastore(tiny.decoder())
    narrow = type(store)(store.keys[:, :8], store.positions, store.counts, store.documents)
    with pytest.raises(MlpMemError, match="hidden size .*; got 8"):
        Model(tiny.decoder()).attach_datastore(narrow, make_retriever("flat", narrow.keys))


def test_a_row_without_neighbours_is_only_the_decoder():
    class Blind:
        bytes, holds_keys = 0, False

        def search(self, queries, k):
            indices = torch.full((len(queries), k), -1)
            return Neighbours(indices, torch.full(indices.shape, torch.inf))

    model = tiny.model()
    model.attach_datastore(model.datastore, Blind())
    actual = model.distributions(PROMPT, lmbda=0.9, system="knn")
    torch.testing.assert_close(actual["fused"], actual["lm"])
    trace = model.generate(PROMPT, "knn", max_new_tokens=2)
    assert trace.steps[0].neighbours == []


@pytest.mark.parametrize("lmbda", [-0.1, 1.1, float("nan"), "half", True])
def test_a_lambda_outside_0_and_1_is_refused(lmbda, tiny_model):
    with pytest.raises(MlpMemError, match="must be a number from 0 .* to 1"):
        tiny_model.distributions(PROMPT, lmbda=lmbda)
    with pytest.raises(MlpMemError, match="must be a number from 0"):
        tiny_model.compare(PROMPT, lmbda={"memory": lmbda})


def test_a_lambda_for_an_unknown_system_is_refused(tiny_model):
    with pytest.raises(MlpMemError, match="lmbda must name lm, memory, knn, mixed; got 'memroy'"):
        tiny_model.compare(PROMPT, lmbda={"memroy": 0.5})


def test_settings_outside_their_range_are_refused():
    for wrong in ({"k": 0}, {"knn_temperature": 0.0}, {"lmbda": {"knn": 2.0}}):
        with pytest.raises(MlpMemError):
            Settings(**wrong)


def test_a_memorys_config_gives_the_default_settings():
    decoder = tiny.decoder()
    memory = tiny.memory(decoder, lmbda=0.7, temperature=1.5, knn_k=9, knn_temperature=4.0)
    settings = Model(decoder, memory).settings
    assert settings == Settings({"memory": 0.7, "knn": 0.5}, 9, 4.0, 1.5)


def test_a_memory_of_another_decoder_is_refused():
    with pytest.raises(MlpMemError, match="belongs to another decoder"):
        Model(tiny.decoder(depth=0), tiny.memory(tiny.decoder()))


def test_a_half_precision_decoder_and_memory_work_together():
    decoder = tiny.decoder()
    decoder.model.bfloat16()
    model = Model(decoder, tiny.memory(decoder).float())
    actual = model.distributions(PROMPT)
    assert all(log_probs.dtype == torch.float32 for log_probs in actual.values())
