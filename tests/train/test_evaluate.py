"""The stages evaluate and finetuned on tiny models: their figures equal the library's."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny
import tiny_run

from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.model.lora import load_adapter
from train.config.tables import EvaluateConfig, FinetunedConfig
from train.files import read_json, write_json
from train.measure.atlas import ATLAS_LAMBDAS, Grid, Measured, MeasuredModel, Test, choose_lambda
from train.run.stage import StageContext
from train.stages import finetuned
from train.stages.evaluate import evaluate, load_results


def test_lambda_maximises_the_mean_over_groups_in_dev_wordings():
    def rows(a1, a2, b):
        return {
            "A1_dev": np.interp(ATLAS_LAMBDAS, *a1),
            "A2_dev": np.interp(ATLAS_LAMBDAS, *a2),
            "B_dev": np.interp(ATLAS_LAMBDAS, *b),
            "B_test": np.interp(ATLAS_LAMBDAS, [0, 1], [1, 0]),  # never used to choose
        }

    flat, rises = ([0, 1], [0.5, 0.5]), ([0, 0.5, 1], [0, 0.8, 1.0])
    falls = ([0, 0.5, 1], [1.0, 0.9, 0.1])
    assert choose_lambda(rows(flat, flat, rises)) == 1.0
    assert choose_lambda(rows(falls, falls, rises)) == 0.5
    assert choose_lambda(rows(flat, flat, flat)) == 0.0  # the smallest of equals


def test_perplexity_is_by_group_and_of_the_mix():
    gold = {"lm": np.array([0.5, 0.5, 0.1]), "memory": np.array([0.5, 0.125, 0.9])}
    nll = {name: -np.log(probs) for name, probs in gold.items()}
    measured = Measured(None, None, np.array(["A2", "B", "B"]), Grid({}, nll), np.arange(3))
    assert measured.perplexity("memory", 0.0) == pytest.approx({"A2": 2.0, "B": np.sqrt(20)})
    assert measured.perplexity("memory", 1.0) == pytest.approx({"A2": 2.0, "B": np.sqrt(8 / 0.9)})
    half = np.exp(-np.log([0.3125, 0.5]).mean())
    assert measured.perplexity("memory", 0.5) == pytest.approx({"A2": 2.0, "B": half})


# The stages on tiny models


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return tiny_run.stages(tmp_path_factory.mktemp("run"))


def test_the_stage_measures_every_system_and_lambda(inputs, tmp_path, tiny_model):
    config = EvaluateConfig(questions=50, k=16, temperature=3.0)
    counts = evaluate(StageContext(tmp_path, inputs, config, 0))
    results = load_results(tmp_path)
    assert results["lmbda"] == counts["lmbda"] and set(counts["lmbda"]) == {"memory", "knn"}
    assert len(set(counts["lmbda"].values())) == 1
    assert results["forgetting"] == [{"name": "finetuned_B_0.001_1"}]
    assert results["keys"] == len(tiny_model.datastore) and results["choosing"] == "dev"
    assert [s["name"] for s in results["systems"]] == ["lm", "memory", "knn", "auto", "auto_knn"]
    cells = {f"{g}/{w}" for g in ("A1", "A2", "B") for w in (
        "seen", "dev", "test", "unseen", "statement_test"
    )}  # fmt: skip
    for system in results["systems"]:
        assert set(system["accuracy"]) == cells and set(system["ppl"]) == {"A1", "A2", "B"}
        assert all(count["n"] == 2 for count in system["accuracy"].values())
        assert system["bytes"] > 0 and system["train_seconds"] >= 2.5
    lm = results["systems"][0]
    assert lm["lmbda"] is None and results["systems"][1]["lmbda"] == results["lmbda"]["memory"]
    for source in ("memory", "knn"):
        curves = results["lambda_curves"][source]
        assert curves["lmbdas"] == list(ATLAS_LAMBDAS)
        assert {len(values) for values in curves.values()} == {len(ATLAS_LAMBDAS)}
        assert curves["ppl_B"][0] == pytest.approx(lm["ppl"]["B"])


def test_the_measured_perplexity_equals_the_librarys_score(inputs, tmp_path, tiny_model):
    evaluate(StageContext(tmp_path, inputs, EvaluateConfig(questions=50, k=16, temperature=3.0), 0))
    curves = load_results(tmp_path)["lambda_curves"]
    documents, nll = tiny.documents(), {"memory": [], "knn": []}
    group_of = np.array(documents.groups)[documents.document_of]
    for p in np.flatnonzero(group_of == "B"):
        ids = documents.passage(p).tolist()
        for at in range(1, len(ids)):
            probs = tiny_model.distributions(ids[:at], lmbda=0.5)
            for name in nll:
                mixed = 0.7 * probs["lm"].exp() + 0.3 * probs[name].exp()
                nll[name].append(-float(mixed[ids[at]].log()))
    for name, values in nll.items():
        ppl = curves[name]["ppl_B"][ATLAS_LAMBDAS.index(0.3)]
        assert ppl == pytest.approx(np.exp(np.mean(values)), rel=1e-3)


# Fine-tuned decoders


@pytest.mark.parametrize("rank, name", [(0, "finetuned_A1+B_0.01_12"), (8, "lora_A1+B_0.01_12_8")])
def test_fine_tuning_learns_the_documents_and_is_measured(inputs, tmp_path, tiny_model, rank, name):
    context = StageContext(tmp_path, inputs, FinetunedConfig(questions=50), 0)
    row, peak = finetuned._run_setting(context, ("A1+B", 1e-2, 12, rank))
    assert peak > 2**20
    assert row["name"] == name and "12 epochs" in row["label"]
    plain = Test.load(inputs["corpus"], tiny_model.decoder.tokenizer, 50, 0).measure(
        MeasuredModel(tiny_model.decoder)
    )
    before = plain.perplexity("lm", 0.0)
    assert row["ppl_B"] < before["B"] / 2 and row["ppl_A1"] < before["A1"] / 2
    assert set(row) >= {"B_seen", "B_test", "A2_test", "A1_statement_test", "seconds", "lr"}
    assert sorted(p.name for p in tmp_path.iterdir()) == [name, f"{name}.json"]
    base = Decoder.load(inputs["decoder"])
    saved = load_adapter(base, tmp_path / name) if rank else Decoder.load(tmp_path / name)
    measured = Test.load(inputs["corpus"], saved.tokenizer, 50, 0).measure(MeasuredModel(saved))
    assert measured.perplexity("lm", 0.0)["B"] == pytest.approx(row["ppl_B"], rel=1e-4)


def test_a_group_is_fine_tuned_only_on_its_own_passages():
    documents = tiny.documents()
    chosen = finetuned._in_groups(documents, ["A2", "B"])
    groups = np.array(documents.groups)[documents.document_of]
    expected = [documents.passage(p).tolist() for p in np.flatnonzero(groups != "A1")]
    assert [chosen.passage(p).tolist() for p in range(len(chosen))] == expected


def test_a_killed_comparison_resumes_after_the_finished_settings(tmp_path, monkeypatch):
    settings = (("B", 2e-4, 1), ("B", 4e-4, 2))
    lora = (("A1+B", 1e-3, 2, 4),)
    (tmp_path / "corpus").mkdir()
    write_json(tmp_path / "corpus/manifest.json", {"config": {"kind": "atlas"}})
    inputs = {"corpus": tmp_path / "corpus"}
    context = StageContext(
        tmp_path, inputs, FinetunedConfig(settings=settings, lora=lora, processes=1), 0
    )
    started = []

    def measure(context, setting):
        name = finetuned.name_of(setting)
        started.append(name)
        if len(started) == 2:
            raise MlpMemError("step 3: the loss must be finite")
        (context.folder / name).mkdir()
        groups, lr, epochs, rank = setting
        dev = {"A1_dev": 0.5, "A2_dev": 0.5, "B_dev": lr * 1000}
        return {"name": name, "groups": groups, "lr": lr, "epochs": epochs, "rank": rank} | dev

    monkeypatch.setattr(finetuned, "_measure", measure)
    monkeypatch.setattr(finetuned, "ProcessPoolExecutor", lambda n, *_: ThreadPoolExecutor(n))
    with pytest.raises(MlpMemError, match="step 3"):
        finetuned.compare_finetuned(context)
    assert not (tmp_path / "finetuned.json").exists()
    kept = ["finetuned_B_0.0004_2", "lora_A1+B_0.001_2_4"]
    counts = finetuned.compare_finetuned(context)
    assert counts.pop("workers_memory") > 2**20
    assert counts == {"settings": 3, "kept": kept}
    rows = read_json(tmp_path / "finetuned.json")
    listed = [(r["groups"], r["lr"], r["epochs"], r["rank"]) for r in rows]
    assert listed == [(*setting, 0) for setting in settings] + list(lora)
    assert started.count("finetuned_B_0.0002_1") == 1 and set(started[2:]) <= set(kept)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir() and p.name != "corpus") == kept
