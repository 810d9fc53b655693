"""Routers are fitted to the mix's nll on dev wordings or validation text, then measured."""

import dataclasses
import math

import numpy as np
import pytest
import tiny
import tiny_run
import torch

from mlpmem.engine.router import FEATURES, load_routers
from mlpmem.engine.trace import AUTO, PARTS
from mlpmem.retrieval.documents import Documents
from train.config.tables import RouterFitConfig
from train.files import read_json
from train.kinds.atlas import AtlasKind
from train.measure.by_token import measure
from train.run.stage import StageContext
from train.stages import router as stage
from train.stages.router import RouterRows, fit, fit_routers, nll, objective
from train.studies import routing

CONFIG = RouterFitConfig(units=2, questions=2, tokens=40, window=16, k=9, temperature=3.0)


def rows(count: int = 40) -> RouterRows:
    """Return rows whose first feature tells which source is right."""
    features = torch.randn(count, len(FEATURES))
    sure = torch.where(features[:, 0] > 0, 0.9, 0.05)
    return RouterRows(features, (0.95 - sure).log(), sure.log())


def test_the_loss_is_the_mixs_nll_and_its_gradient_is_right():
    batch, weights = rows(7), torch.rand(7).double()
    batch = RouterRows(batch.features.double(), batch.lm.double(), batch.other.double())
    logits = torch.randn(7, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: nll(x, batch, weights), logits)
    lmbda = torch.sigmoid(logits.detach())
    mixed = (1 - lmbda) * batch.lm.exp() + lmbda * batch.other.exp()
    assert float(nll(logits.detach(), batch, weights)) == pytest.approx(
        -float(weights @ mixed.log())
    )


def test_a_token_without_probability_leaves_loss_and_gradient_finite():
    never = torch.full((2,), -torch.inf)
    logits = torch.tensor([50.0, -50.0], requires_grad=True)
    loss = nll(logits, RouterRows(torch.zeros(2, len(FEATURES)), never, never), torch.ones(2))
    loss.backward()
    assert math.isfinite(loss.item()) and bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("units", [0, 4])
def test_a_fitted_router_beats_the_best_fixed_lambda_and_is_reproducible(units, tiny_model):
    batch, weights = rows(), torch.full((40,), 1 / 40)
    config = dataclasses.replace(CONFIG, units=units)
    router, loss = fit(tiny_model, "memory", batch, weights, config, seed=3)
    grid = torch.linspace(0.01, 0.99, 99).logit()
    fixed = min(float(nll(x.expand(40), batch, weights)) for x in grid)
    assert loss < fixed - 0.1
    again, _ = fit(tiny_model, "memory", batch, weights, config, seed=3)
    assert all(map(torch.equal, router.state_dict().values(), again.state_dict().values()))


def test_routers_see_only_dev_wordings_and_groups_have_equal_weight(tmp_path):
    inputs = tiny_run.stages(tmp_path)
    data = AtlasKind().router_data(inputs["corpus"], tiny.decoder(), CONFIG, seed=0)
    text = [tiny.decoder().decode(data.documents.passage(p)) for p in range(len(data.documents))]
    dev = [q for q in tiny_run.questions() if q["wording"] == "dev"]
    assert len(text) == len(dev) == 6
    assert len(data.positions) == len(data.documents.tokens) - len(text), "all but the first tokens"
    groups = np.array(data.documents.groups)[data.documents.passage_at(data.positions)]
    for group in ("A1", "A2", "B"):
        mask = torch.from_numpy(groups == group)
        assert float(data.weights[mask].sum()) == pytest.approx(1 / 3, abs=1e-5)
    weights = data.weights[torch.from_numpy(groups == "B")]
    assert float(weights.max() / weights.min()) == pytest.approx(CONFIG.answers, rel=1e-4)


@pytest.mark.parametrize("kind", ["atlas", "text"])
def test_the_stage_writes_one_router_per_system_and_the_study_measures_it(kind, tmp_path):
    inputs = tiny_run.stages(tmp_path, kind)
    context = StageContext(tmp_path / "made", inputs, CONFIG, seed=1)
    counts = fit_routers(context)
    routers = load_routers(tmp_path / "made")
    assert set(routers) == set(counts["nll"]) == set(stage.SYSTEMS)
    model = tiny.model()
    model.routers = {s: router.bind(model.decoder) for s, router in routers.items()}
    findings = routing.study(model, inputs["corpus"], 9, 0, "how")
    value = {(f.split, f.system, f.metric, f.setting.get("lmbda")): f.value for f in findings}
    assert {f.system for f in findings} == set(PARTS)
    for (split, system, metric, mode), best in value.items():
        if mode == "oracle":
            for other in ("fixed", AUTO):
                lower = value[split, system, metric, other]
                assert lower <= best if metric == "exact_match" else lower >= best
    assert routing.table(findings).splitlines()[0].split()[:2] == ["lm", "memory"]


def test_the_study_agrees_with_scoring(tmp_path):
    inputs = tiny_run.stages(tmp_path)
    model = tiny.model()
    router, _ = fit(model, "memory", rows(), torch.full((40,), 1 / 40), CONFIG, 0)
    model.routers = {"memory": router.bind(model.decoder)}
    texts = Documents.load(inputs["corpus"] / "heldout")
    positions = np.delete(np.arange(len(texts.tokens)), texts.offsets[:-1])
    measured = measure(model, texts, positions)
    score = model.score(texts.passage(0).tolist())
    first = slice(0, len(score.ids) - 1)
    for mode, lmbda in (("fixed", None), (AUTO, AUTO)):
        expected = score.mixed("memory", lmbda)
        np.testing.assert_allclose(measured["memory", mode][1][first], expected, atol=1e-3)
    right, value = measured["memory", "oracle"]
    assert right.dtype == bool and bool((value[first] <= score.nll["lm"] + 1e-3).all())


def test_the_command_reports_missing_parts_and_writes_its_findings(tmp_path, capsys, monkeypatch):
    assert routing.main(["tiny", "--runs", str(tmp_path), "--bundle", str(tmp_path / "no")]) == 1
    assert "neither a local folder nor a preset" in capsys.readouterr().err
    root = tmp_path / "tiny"
    root.mkdir()
    tiny_run.stages(root)
    model = tiny.model()
    monkeypatch.setattr(routing.mlpmem, "load", lambda bundle, datastore: model)
    arguments = ["tiny", "--runs", str(tmp_path), "--questions", "2"]
    assert routing.main(arguments) == 1
    assert "there is no router" in capsys.readouterr().err
    router, _ = fit(model, "memory", rows(), torch.full((40,), 1 / 40), CONFIG, 0)
    model.routers = {"memory": router}
    assert routing.main(arguments) == 0
    assert "B/test/invented" in capsys.readouterr().out
    findings = read_json(root / "findings" / "routing.json")
    assert {"fixed", AUTO, "oracle"} <= {row["setting"].get("lmbda") for row in findings}


def test_a_gate_is_shut_where_the_memory_was_taught_nothing(tiny_model):
    """The mix's nll would not shut it: both sources give the true token the same probability."""
    taught = (torch.arange(40) % 2).float()
    batch = RouterRows(rows().features + 3 * taught[:, None], *torch.full((2, 40), -0.1), taught)
    weights = torch.full((40,), 1 / 40)
    router, _ = fit(tiny_model, "memory", batch, weights, CONFIG, seed=0)
    lmbda = torch.sigmoid(router(batch.features) / CONFIG.trust).detach()
    assert lmbda[taught == 0].max() < 0.1 and lmbda[taught == 1].min() > 0.9
    expected = float(torch.nn.functional.binary_cross_entropy(lmbda, taught))
    value = float(objective(lmbda.logit(), batch, weights))
    assert value == pytest.approx(expected, abs=1e-4)
