"""Windows score every token once, sources equal the library's, settings come from validation."""

import json

import numpy as np
import pytest
import tiny
import tiny_run

import mlpmem
from mlpmem.errors import MlpMemError
from mlpmem.retrieval.documents import join_passages
from mlpmem.ui.panels import results as results_tab
from train.config.tables import EvaluateConfig, ExportConfig, FinetunedConfig, TargetsConfig
from train.kinds.text import prefixes
from train.measure.text import (
    TEXT_LAMBDAS,
    Golds,
    best_lambda,
    curve,
    measure_golds,
    nll_of,
    perplexity,
    share_of_gain,
    slide,
    units_of,
)
from train.report.__main__ import tables
from train.run.stage import StageContext
from train.stages.evaluate import evaluate, load_results
from train.stages.export import make_bundle
from train.stages.finetuned import compare_finetuned
from train.stages.targets import make_targets


def documents_of(lengths):
    """Return documents of one passage each, of distinct tokens after a first token 0."""
    pairs, at = [], 1
    for d, n in enumerate(lengths):
        pairs.append((d, [0, *range(at, at + n - 1)]))
        at += n
    return join_passages(pairs, [str(d) for d in range(len(lengths))], ["text"] * len(lengths))


@pytest.mark.parametrize(("window", "stride"), [(8, 3), (8, 7), (5, 1), (2, 1), (400, 100)])
def test_every_token_is_scored_once_with_the_context_before_it(window, stride):
    documents = documents_of([1, 2, 7, 8, 9, 40, 23])
    windows, positions = slide(documents, window, stride, 10**9, 0)
    scored = windows.tokens[positions]
    assert sorted(scored) == sorted(documents.tokens[documents.tokens > 0])
    assert np.diff(windows.offsets).max() <= window
    for at in positions:
        p = int(windows.passage_at(np.int64(at)))
        before = windows.tokens[windows.offsets[p] : at].tolist()
        source = int(np.flatnonzero(documents.tokens == windows.tokens[at])[0])
        q = int(documents.passage_at(np.int64(source)))
        whole = documents.tokens[documents.offsets[q] : source].tolist()
        assert before[0] == 0 and before[1:] == whole[len(whole) - len(before) + 1 :]
        assert windows.titles[windows.document_of[p]] == documents.titles[q]
        assert len(before) >= min(len(whole), window - stride)


def test_positions_are_resampled_by_document_or_by_window_of_a_single_document():
    windows, positions = slide(documents_of([40, 30]), 10, 5, 10**9, 0)
    assert np.array_equal(units_of(windows, positions), (windows.tokens[positions] >= 40) * 1)
    windows, positions = slide(documents_of([40]), 10, 5, 10**9, 0)
    units = units_of(windows, positions)
    assert np.array_equal(units, windows.passage_at(positions)) and len(set(units)) == len(windows)


def test_a_limit_on_tokens_drops_whole_windows_over_all_documents():
    documents = documents_of([200] * 30)
    windows, positions = slide(documents, 20, 10, 1500, 1)
    again = slide(documents, 20, 10, 1500, 1)[0]
    assert 1500 - 20 < len(positions) <= 1500 and np.array_equal(windows.tokens, again.tokens)
    assert len(set(windows.document_of)) == 30
    assert not np.array_equal(windows.tokens, slide(documents, 20, 10, 1500, 2)[0].tokens)


def test_knns_probability_is_the_weight_of_the_right_neighbours():
    rng = np.random.default_rng(0)
    distances = np.sort(rng.random((5, 6)).astype(np.float32) * 9, 1)
    counts, hits = rng.integers(1, 4, (5, 6)), rng.random((5, 6)) < 0.5
    golds = Golds(np.ones(5), np.ones(5), distances, counts, hits)
    for k, temperature in ((6, 2.0), (3, 7.0), (1, 0.1)):
        for row in range(5):
            weights = [counts[row, i] * np.exp(-distances[row, i] / temperature) for i in range(k)]
            right = sum(weights[i] for i in range(k) if hits[row, i])
            prob = np.exp(-golds.knn(k, temperature)[row])
            assert prob == pytest.approx(right / sum(weights), rel=1e-5, abs=1e-29)


def test_perplexity_and_the_best_lambda_are_those_of_the_mix():
    lm, other = nll_of(np.array([0.5, 0.1])), nll_of(np.array([0.0, 0.9]))
    assert perplexity(lm, other, 0.0) == pytest.approx(np.sqrt(20))
    assert perplexity(lm, other, 0.5) == pytest.approx((0.25 * 0.5) ** -0.5)
    assert perplexity(lm, other, 1.0) > 1e12
    rows = curve(lm, other, TEXT_LAMBDAS)
    best = best_lambda(rows)
    assert rows[TEXT_LAMBDAS.index(best)] == min(rows) and 0 < best < 1
    assert best_lambda([3.0] * len(TEXT_LAMBDAS)) == 0.0


def test_share_of_gain_is_relative_to_the_gain_of_knn():
    assert share_of_gain({"lm": 10.0, "knn": 8.0, "memory": 9.0}) == pytest.approx(0.5)
    assert share_of_gain({"lm": 10.0, "knn": 8.0, "memory": 7.0}) == pytest.approx(1.5)
    assert share_of_gain({"lm": 5.0, "knn": 5.0, "memory": 4.0}) is None


# The stages on a tiny text corpus


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return tiny_run.stages(tmp_path_factory.mktemp("run"), "text")


CONFIG = EvaluateConfig(window=20, stride=8, tokens=10**6, ks=(4, 10**6), temperatures=(3.0, 50.0))


@pytest.fixture(scope="module")
def evaluated(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    evaluate(StageContext(folder, inputs, CONFIG, 0))
    return load_results(folder)


def test_every_source_equals_the_librarys():
    model = tiny.model(k=10**4)  # all neighbours, since a smaller k may cut among ties
    text = slide(tiny.documents(), CONFIG.window, CONFIG.stride, 10**6, 0)
    golds = measure_golds(model.decoder, model.memory, model.datastore, text, len(model.datastore))
    windows, positions = text
    for row in range(0, len(positions), 7):
        at = int(positions[row])
        p = int(windows.passage_at(np.int64(at)))
        log_probs = model.distributions(windows.tokens[windows.offsets[p] : at].tolist())
        true = int(windows.tokens[at])
        assert golds.lm[row] == pytest.approx(-float(log_probs["lm"][true]), abs=1e-3)
        assert golds.memory[row] == pytest.approx(-float(log_probs["memory"][true]), abs=1e-3)
        prob = np.exp(-golds.knn(10**4, 3.0)[row])
        assert prob == pytest.approx(float(log_probs["knn"][true].exp()), rel=1e-3, abs=1e-9)


def test_results_have_the_settings_that_are_best_on_validation(evaluated, tiny_model):
    results = evaluated
    assert [s["name"] for s in results["systems"]] == ["lm", "memory", "knn"]
    assert results["config"]["k"] in (4, len(tiny_model.datastore))
    assert results["config"]["temperature"] in CONFIG.temperatures
    assert (
        results["choosing"] == "valid" and results["scored"]["valid"] == results["scored"]["test"]
    )
    for source in ("memory", "knn"):
        rows, lmbda = results["lambda_curves"][source], results["lmbda"][source]
        assert lmbda == rows["lmbdas"][int(np.argmin(rows["ppl_valid"]))]
        system = next(s for s in results["systems"] if s["name"] == source)
        best = rows["ppl_text"][rows["lmbdas"].index(lmbda)]
        assert system["ppl"] == {"text": pytest.approx(best, rel=1e-12)}
        assert system["lmbda"] == lmbda and system["accuracy"] == {} and system["bytes"] > 0
    lm = results["systems"][0]
    assert (
        lm["lmbda"] is None and lm["ppl"]["text"] == results["lambda_curves"]["knn"]["ppl_text"][0]
    )


def test_a_window_beyond_the_decoders_positions_is_refused(inputs, tmp_path):
    with pytest.raises(MlpMemError, match="window must be at most 96 .* got 97"):
        evaluate(StageContext(tmp_path, inputs, EvaluateConfig(window=97, stride=8), 0))


def test_a_window_that_cannot_slide_and_an_empty_choice_are_refused():
    for values in ({"stride": 256}, {"stride": 0}, {"ks": ()}, {"temperatures": ()}):
        with pytest.raises(MlpMemError, match="evaluate: stride"):
            EvaluateConfig(**values)


def test_no_decoder_is_fine_tuned_for_a_text_corpus(inputs, tmp_path):
    assert compare_finetuned(StageContext(tmp_path, inputs, FinetunedConfig(), 0)) == {
        "settings": 0,
        "kept": [],
        "workers_memory": 0,
    }
    assert json.loads((tmp_path / "finetuned.json").read_text()) == []


def test_prefixes_are_beginnings_of_documents(tiny_model):
    documents = tiny.documents()
    passages = (documents.passage(p).tolist() for p in range(len(documents)))
    whole = list(map(tiny_model.decoder.decode, passages))
    examples = prefixes(tiny_model, documents, 3, 0)
    assert len(examples) == 3 and examples == prefixes(tiny_model, documents, 3, 0)
    for example in examples:
        assert any(text.startswith(example["prompt"] + " ") for text in whole)
        assert example["title"] in documents.titles and example["group"] == "longer"


def test_a_datastore_with_fewer_entries_than_k_is_refused(inputs, tmp_path, tiny_model):
    entries = len(tiny_model.datastore)
    with pytest.raises(MlpMemError, match=f"less than the {entries} entries .* got {entries}"):
        make_targets(StageContext(tmp_path, inputs, TargetsConfig(k=entries), 0))


def test_the_bundle_loads_and_page_and_report_show_its_results(inputs, evaluated, tmp_path):
    (inputs["evaluate"] / "results.json").write_text(json.dumps(evaluated))
    counts = make_bundle(
        StageContext(tmp_path, inputs, ExportConfig(name="mine", examples=3, traces=1), 0)
    )
    model = mlpmem.load(tmp_path / "mine")
    assert model.systems == ["lm", "memory", "knn"] and counts["traces"] == 1
    assert model.settings.lmbda == evaluated["lmbda"]
    results = json.loads((tmp_path / "mine/results.json").read_text(encoding="utf-8"))
    ppl = f"{evaluated['systems'][1]['ppl']['text']:.2f}"
    assert ppl in results_tab._tables(results) and f"| {ppl} |" in tables(results)
    assert "B, new" not in results_tab._tables(results)
    figures = results_tab.draw(results)
    assert figures[:2] == [None, None] and all(f is not None for f in figures[2:])
