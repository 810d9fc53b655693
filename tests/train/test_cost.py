"""Figures of the benches become findings with setting, interval, floor and peer."""

import json

from mlpmem.bench.figures import Figure
from train.files import write_json
from train.studies import answer_cost
from train.studies.__main__ import main


def test_a_figure_becomes_findings_with_its_setting_floor_and_peer():
    name = "search/flat-fp16/ms_per_query/keys=1000/simulated"
    figure = Figure(name, 2.0, "ms", floor=1.0, peer=4.0, low=1.5, high=3.0, n=9)
    one, floor, peer = answer_cost.findings([figure], "bench {}")
    assert (one.system, one.split, one.metric) == ("flat-fp16", "search", "ms_per_query")
    assert one.setting == {"keys": 1000, "simulated": True}
    assert (one.value, one.low, one.high, one.n) == (2.0, 1.5, 3.0, 9)
    assert (floor.metric, floor.value) == ("ms_per_query_floor", 1.0)
    assert one.how == "bench search"
    assert (peer.metric, peer.value) == ("ms_per_query_peer", 4.0)


def test_the_study_saves_the_figures_of_the_runs_bundle(tmp_path, monkeypatch):
    bundles = []

    def figures(bundle):
        bundles.append(bundle)
        return [Figure("bytes/lm/in_memory", 5, "bytes")]

    monkeypatch.setattr(answer_cost, "figures", figures)
    root = tmp_path / "tiny"
    (root / "export").mkdir(parents=True)
    write_json(root / "export" / "manifest.json", {"config": {}})
    assert main(["cost", "tiny", "--runs", str(tmp_path)]) == 0
    assert bundles == [(root / "export/tiny").as_posix()]
    (row,) = json.loads((root / "findings" / "cost.json").read_text())
    assert (row["study"], row["system"], row["value"]) == ("cost", "lm", 5)
    assert row["how"] == f"python -m mlpmem.bench bytes --bundle {bundles[0]}"
