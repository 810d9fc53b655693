"""A router's features and folder, and lambda "auto" in every call."""

import dataclasses
import json
import math

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import save_file

from mlpmem.api import Model
from mlpmem.engine.router import FEATURES, Router, RouterConfig, features, load_routers
from mlpmem.engine.settings import Settings
from mlpmem.engine.trace import AUTO, PARTS, SOURCES, Trace
from mlpmem.errors import MlpMemError
from mlpmem.loading.bundle import load_bundle
from mlpmem.loading.registry import SystemRegistry
from mlpmem.ui.request import columns

PROMPT = "The capital of Peru is"
SYSTEMS = ("memory", "knn", "mixed")


def router(system: str, bound, units: int = 3) -> Router:
    """Return a router of random weights whose lambda differs from token to token."""
    torch.manual_seed(len(system))
    result = Router(RouterConfig(system, bound.vocab_size, bound.tokenizer_hash, units))
    with torch.no_grad():
        for weight in result.parameters():
            weight.normal_()
        result.mean.normal_()
        result.scale.uniform_(1, 3)
        result.scale[FEATURES.index("evidence")] = 20  # its range, or every lambda is saturated
    return result.requires_grad_(False)


@pytest.fixture(scope="module")
def routed():
    """Return a tiny model with a router for every system."""
    model = tiny.model()
    routers = {system: router(system, model.decoder) for system in SYSTEMS}
    routed = Model(model.decoder, model.memory, model.settings, "tiny", routers)
    routed.attach_datastore(model.datastore, model.retriever)
    return routed


def slow_features(lm: list[float], other: list[float], read: float, nearest) -> list[float]:
    """Return FEATURES of one position, token by token, in plain Python."""
    a, b = max(range(len(lm)), key=lm.__getitem__), max(range(len(other)), key=other.__getitem__)
    entropies = [-sum(p * math.log(p) for p in row if p > 0) for row in (lm, other)]
    logs = [math.log(max(p, math.exp(-20))) for p in (lm[a], other[b], lm[b], other[a])]
    distance = 0.0 if nearest is None else math.log(1 + nearest)
    return [*logs[:2], *entropies, *logs[2:], float(a == b), distance, read]


def slow_evidence(score, system: str) -> float:
    """Return the evidence of a scored text; the newest token has weight 1."""
    half = np.mean([np.exp(-score.nll[part]) for part in PARTS[system]], axis=0)
    gaps = np.maximum(np.log(half), -4) - np.maximum(-score.nll["lm"], -4)
    return float((gaps[::-1] * 0.9 ** np.arange(len(gaps))).sum())


@pytest.mark.parametrize("nearest", [None, torch.tensor([0.0, 0.25, 7.5])])
def test_features_equal_a_slow_reference_even_for_impossible_tokens(nearest):
    probs = torch.softmax(torch.randn(2, 3, 11) * 3, -1)
    probs[1, 0] = torch.eye(11)[4]  # a datastore gives most tokens nothing
    probs[1, 1] = probs[0, 1]  # both sources agree in row 1
    read = torch.tensor([0.0, -3.5, 20.0])
    actual = features(*probs.log(), read, nearest)
    assert actual.shape == (3, len(FEATURES)) and actual[1, FEATURES.index("agree")] == 1
    for r, row in enumerate(actual.tolist()):
        distance = None if nearest is None else float(nearest[r])
        lm, other = probs[:, r].tolist()
        expected = slow_features(lm, other, float(read[r]), distance)
        assert row == pytest.approx(expected, abs=1e-4)


def test_a_position_without_neighbours_has_a_finite_lambda():
    lm = torch.log_softmax(torch.randn(2, 9), -1)
    far = torch.zeros(2), torch.full((2,), torch.inf)
    lmbda = router("knn", tiny.decoder()).lmbda(lm, lm, *far)
    assert bool(((lmbda >= 0) & (lmbda <= 1)).all())
    unfitted = Router(RouterConfig("knn", 9, ""))
    assert unfitted.lmbda(lm, lm, *far).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("units", [0, 5])
def test_a_loaded_router_equals_the_saved_one(units, tmp_path):
    bound = tiny.decoder()
    saved = router("mixed", bound, units)
    saved.save(tmp_path / "mixed")
    loaded = load_routers(tmp_path)
    assert list(loaded) == ["mixed"] and load_routers(tmp_path / "nowhere") == {}
    actual = torch.randn(4, len(FEATURES))
    assert torch.equal(loaded["mixed"].bind(bound)(actual), saved(actual))


def test_a_router_of_another_decoder_or_a_damaged_one_is_refused(tmp_path):
    bound = tiny.decoder()
    other = Router(RouterConfig("memory", bound.vocab_size, "0" * 64))
    with pytest.raises(MlpMemError, match="router belongs to another decoder"):
        Model(bound, tiny.memory(bound), routers={"memory": other})
    other.save(tmp_path)
    row = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(row | {"features": ["mood"]}))
    with pytest.raises(MlpMemError, match="features must be lm_top.*; got mood"):
        Router.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(row | {"units": 2}))
    with pytest.raises(
        MlpMemError,
        match="hidden.bias must be .2. .*; got nothing.*fit it again",
    ):
        Router.load(tmp_path)
    with pytest.raises(MlpMemError, match="must be memory, knn or mixed.*got 'lm'"):
        RouterConfig("lm", 5, "")


@pytest.mark.parametrize("units", [-1, 10**12, 1.5, True, "16"])
def test_a_router_of_impossible_size_is_refused_before_its_weights_are_allocated(units):
    with pytest.raises(MlpMemError, match="units must be .* from 0 to 4096; got .*Correct it"):
        RouterConfig("knn", 5, "", units)


WRONG = {  # tensors that replace a router's own, and the message
    "not numbers": ({"out.bias": torch.tensor([math.nan])}, "out.bias must hold finite floats"),
    "too large": ({"mean": torch.full((9,), 3e38)}, "mean must hold finite floats up to 1e.06"),
    "no scale": ({"scale": torch.zeros(9)}, "scale must be at least 1e-06"),
    "another kind": ({"mean": torch.zeros(9, dtype=torch.int64)}, "mean must hold finite floats"),
    "complex": ({"mean": torch.zeros(9, dtype=torch.complex64)}, "mean must hold finite floats"),
    "another shape": (
        {"mean": torch.zeros(7)},
        r"mean must be \[9\] by .*got \[7\]",
    ),
    "scalar": (
        {"out.bias": torch.tensor(0.0)},
        r"out.bias must be \[1\] .*got \[\]",
    ),
    "another name": ({"extra": torch.zeros(2)}, r"extra must be absent .*got \[2\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_router_of_wrong_weights_is_refused_with_the_tensor(name, tmp_path):
    tensors, message = WRONG[name]
    saved = router("memory", tiny.decoder())
    saved.save(tmp_path)
    save_file(saved.state_dict() | tensors, tmp_path / "model.safetensors")
    with pytest.raises(MlpMemError, match=f"{message}.*Download it or fit it again"):
        Router.load(tmp_path)


def test_a_huge_file_of_weights_is_refused_before_it_is_read(tmp_path):
    router("memory", tiny.decoder()).save(tmp_path)
    size = 2**36  # bytes, a hole: reading them would take all memory
    head = json.dumps({"mean": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}})
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head.encode())
        file.truncate(8 + len(head) + size)
    with pytest.raises(
        MlpMemError, match="must have at most 4,194,304.*Download it or fit it again"
    ):
        Router.load(tmp_path)


def test_two_routers_of_one_system_are_refused(tmp_path):
    for name in ("a", "b"):
        router("knn", tiny.decoder()).save(tmp_path / name)
    with pytest.raises(MlpMemError, match="2 folders hold routers of only knn; leave one"):
        load_routers(tmp_path)


@pytest.mark.parametrize("system", SYSTEMS)
def test_auto_is_the_mix_at_the_routers_lambda(system, routed):
    plain = routed.distributions(PROMPT, system=system)
    lm, memory, knn = (plain[source] for source in SOURCES)
    other = {"memory": memory, "knn": knn, "mixed": ((memory.exp() + knn.exp()) / 2).log()}[system]
    trace = routed.generate(PROMPT, system, lmbda=AUTO, max_new_tokens=4)
    distance = None if system == "memory" else torch.tensor([trace.steps[0].neighbours[0].distance])
    score = routed.score(routed.decoder.encode(PROMPT))
    read = [slow_evidence(score, system)]
    lmbda = float(routed.routers[system].lmbda(lm[None], other[None], torch.tensor(read), distance))
    assert 0.001 < lmbda < 0.999 and abs(lmbda - 0.5) > 1e-3
    expected = ((1 - lmbda) * lm.exp() + lmbda * other.exp()).log()
    actual = routed.distributions(PROMPT, lmbda=AUTO, system=system)["fused"]
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    assert trace.lmbda == AUTO and trace.steps[0].lmbda == pytest.approx(lmbda, abs=1e-4)
    assert trace.steps[0].token_id == int(expected.argmax())
    assert len({step.lmbda for step in trace.steps}) == len(trace.steps)


def test_mixed_is_half_memory_half_datastore(routed):
    actual = routed.distributions(PROMPT, lmbda=0.3, system="mixed")
    lm, memory, knn = (actual[source].exp() for source in SOURCES)
    expected = 0.7 * lm + 0.3 * (memory + knn) / 2
    torch.testing.assert_close(actual["fused"].exp(), expected, atol=1e-6, rtol=1e-4)
    step = routed.generate(PROMPT, "mixed", lmbda=0.3, max_new_tokens=1).steps[0]
    assert step.probs["fused"] == pytest.approx(float(expected[step.token_id]), abs=1e-6)
    assert step.lmbda is None and set(step.probs) == {*SOURCES, "fused"}


def test_mixed_must_be_named_and_needs_memory_and_datastore(routed):
    assert routed.systems == list(SOURCES)
    assert list(routed.compare(PROMPT, max_new_tokens=1)) == list(SOURCES)
    every = routed.compare(PROMPT, list(PARTS), lmbda=AUTO, max_new_tokens=2)
    assert list(every) == list(PARTS) and every["lm"].lmbda == 0.0
    with pytest.raises(MlpMemError, match="'mixed' is not available.*both memory and datastore"):
        Model(tiny.decoder()).generate(PROMPT, "mixed")


def test_lambda_0_is_the_decoder_bit_for_bit_in_every_system(routed):
    for system in SYSTEMS:
        actual = routed.distributions(PROMPT, lmbda=0.0, system=system)
        assert torch.equal(actual["fused"], actual["lm"])


def test_mixed_has_the_mean_of_its_parts_lambdas_unless_it_has_its_own():
    lmbda = {"memory": 0.2, "knn": 0.6}
    assert tiny.model(lmbda=lmbda).generate(PROMPT, "mixed", max_new_tokens=1).lmbda == 0.4
    own = tiny.model(lmbda=lmbda | {"mixed": 0.9})
    assert own.generate(PROMPT, "mixed", max_new_tokens=1).lmbda == 0.9


def test_settings_leave_lambda_to_the_routers_unless_a_call_names_one(routed):
    settings = dataclasses.replace(routed.settings, auto=True)
    only = {"memory": routed.routers["memory"]}
    model = Model(routed.decoder, routed.memory, settings, "tiny", only)
    model.attach_datastore(routed.datastore, routed.retriever)
    traces = model.compare(PROMPT, max_new_tokens=2)
    assert {system: trace.lmbda for system, trace in traces.items()} == {
        "lm": 0.0, "memory": AUTO, "knn": settings.of("knn")
    }  # fmt: skip
    assert model.generate(PROMPT, lmbda=0.4, max_new_tokens=1).lmbda == 0.4
    score = model.score(PROMPT)
    assert score.perplexity("memory") == score.perplexity("memory", AUTO)
    assert score.perplexity("memory") != score.perplexity("memory", 0.5)
    cast = SystemRegistry(model)
    assert cast.system("memory").lmbda == settings.of("memory"), "the plain name has the fixed one"
    assert cast.system("auto").lmbda == AUTO
    with pytest.raises(MlpMemError, match="auto must be true or false; got 1"):
        Settings(auto=1)


def test_routers_that_search_are_not_used_for_another_store(routed):
    settings = dataclasses.replace(routed.settings, auto=True)
    model = Model(routed.decoder, routed.memory, settings, "tiny", routed.routers)
    model.attach_datastore(routed.datastore, routed.retriever)
    assert {t.lmbda for t in model.compare(PROMPT, SYSTEMS, max_new_tokens=1).values()} == {AUTO}
    own = model.store_texts([("note", "The capital of Zubrowka is Lutz.")], plain=True)
    expected = {"memory": AUTO, "knn": settings.of("knn"), "mixed": settings.of("mixed")}
    traces = model.compare(PROMPT, SYSTEMS, max_new_tokens=2, store=own)
    assert {system: trace.lmbda for system, trace in traces.items()} == expected
    score = model.score(PROMPT, own)
    assert score.lmbda == {"lm": 0.0} | expected and list(score.routed) == ["memory"]
    spread = model.distributions(PROMPT, system="knn", store=own)
    mixed = settings.of("knn") * spread["knn"].exp() + (1 - settings.of("knn")) * spread["lm"].exp()
    torch.testing.assert_close(spread["fused"].exp(), mixed, atol=1e-6, rtol=1e-5)
    (*_, done) = model.inspect(PROMPT, "knn", store=own)
    assert done.values["knn"].lmbda == settings.of("knn")
    with pytest.raises(MlpMemError, match="needs a router for 'knn'"):
        model.generate(PROMPT, "knn", lmbda=AUTO, store=own)
    assert columns.lambdas(model, SYSTEMS, AUTO, own) == expected


def test_a_routed_columns_cost_has_the_time_its_sources_took_for_the_prompt(routed):
    lmbda = dict.fromkeys(SYSTEMS, AUTO)
    traces = routed.compare(PROMPT, ("lm", *SYSTEMS), lmbda=lmbda, max_new_tokens=1)
    read = {system: trace.cost.get("evidence_ms") for system, trace in traces.items()}
    assert read.pop("lm") is None and all(ms > 0 for ms in read.values())
    assert read["mixed"] == pytest.approx(read["memory"] + read["knn"])
    fixed = routed.compare(PROMPT, ["memory"], lmbda=0.5, max_new_tokens=1)["memory"]
    assert "evidence_ms" not in fixed.cost


def test_a_router_that_the_manifest_does_not_list_is_not_loaded(tmp_path):
    bound = tiny.decoder()
    folder = tiny.bundle(tmp_path / "b", routers={"memory": router("memory", bound)}).folder
    router("knn", bound).save(folder / "router" / "more")
    assert list(load_bundle(folder).model().routers) == ["memory"]


def test_auto_needs_a_router_and_cannot_be_scrubbed(routed, tiny_model):
    for call in (tiny_model.generate, tiny_model.distributions, tiny_model.inspect):
        with pytest.raises(MlpMemError, match='lmbda "auto" needs a router.*train router'):
            call(PROMPT, lmbda=AUTO)
    with pytest.raises(MlpMemError, match="must be a number from 0"):
        routed.scrub(PROMPT, lmbdas=[0.5, AUTO])


@pytest.mark.parametrize("lmbda", [0.4, AUTO])
def test_a_trace_survives_json_with_every_steps_own_lambda(lmbda, routed):
    trace = routed.generate(PROMPT, "mixed", lmbda=lmbda, max_new_tokens=3)
    again = Trace.from_json(trace.to_json())
    assert again.lmbda == lmbda
    assert all(("lmbda" in row) == (lmbda == AUTO) for row in trace.to_dict()["steps"])
    for ours, theirs in zip(again.steps, trace.steps, strict=True):
        assert (ours.lmbda or 0) == pytest.approx(theirs.lmbda or 0, rel=1e-5)
        fused = {c.token_id: c.probs["fused"] for c in theirs.candidates}
        for candidate in ours.candidates:
            assert candidate.probs["fused"] == pytest.approx(fused[candidate.token_id], abs=1e-5)
    row = trace.to_dict() | {"lmbda": AUTO}
    for step in row["steps"]:
        step.pop("lmbda", None)
    with pytest.raises(MlpMemError, match="a field is missing or wrong"):
        Trace.from_dict(row)


@pytest.mark.parametrize("system", SYSTEMS)
def test_scoring_and_inspecting_agree_token_by_token_under_auto(system, routed):
    text = "The capital of Peru is Lima. Gold has the symbol Au."
    score = routed.score(text)
    *_, done = routed.inspect(text, system, lmbda=AUTO)
    steps = done.values[system].steps
    np.testing.assert_allclose([s.lmbda for s in steps], score.routed[system], rtol=1e-4)
    fused = np.array([step.probs["fused"] for step in steps])
    np.testing.assert_allclose(score.mixed(system, AUTO), -np.log(fused), atol=1e-3)
    half = np.mean([np.exp(-score.nll[part]) for part in PARTS[system]], axis=0)
    expected = -np.log(0.5 * np.exp(-score.nll["lm"]) + 0.5 * half)
    np.testing.assert_allclose(score.mixed(system, 0.5), expected, atol=1e-9)


def test_a_bundle_brings_its_routers(tmp_path):
    bound = tiny.decoder()
    folder = tmp_path / "routed"
    bundle = tiny.bundle(folder, routers={s: router(s, bound) for s in ("memory", "knn")})
    assert "router/memory/model.safetensors" in bundle.manifest["files"]
    model = bundle.model()
    assert set(model.routers) == {"memory", "knn"}
    trace = model.generate(PROMPT, lmbda=AUTO, max_new_tokens=2)
    assert trace.lmbda == AUTO and trace.steps[0].lmbda is not None
