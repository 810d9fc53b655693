"""A text recipe's results are saved without curves and become a row of README's table."""

import json

import numpy as np
import pytest
import tiny_run
import torch

from mlpmem.model.decoder import Decoder
from mlpmem.retrieval.documents import Documents
from train.files import read_json, write_json
from train.measure.text import slide
from train.report import real_text

RESULTS = {
    "how": "python -m train evaluate",
    "share_of_gain": 0.75,
    "scored": {"valid": 90, "test": 1234},
    "lambda_curves": {"memory": {"lmbdas": [0, 1]}},
    "systems": [
        {"name": "lm", "lmbda": None, "ppl": {"text": 40.0}, "bytes": 1, "train_seconds": 10.0},
        {"name": "memory", "lmbda": 0.5, "ppl": {"text": 37.0}, "bytes": 2, "train_seconds": 2000},
        {"name": "knn", "lmbda": 0.25, "ppl": {"text": 36.0}, "bytes": 3, "train_seconds": 30.0},
    ],
    "cost": {"decoder_bytes": 1e6, "memory_bytes": 2e6, "datastore_bytes": 3e8, "memory_ms": 1.0},
}


def test_a_run_is_saved_without_curves_and_shown_in_one_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(real_text, "MEASURED", tmp_path / "measured")
    (tmp_path / "measured").mkdir()
    folder = tmp_path / "mine" / "export" / "mine"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(RESULTS))
    assert real_text.main(["mine", "--runs", str(tmp_path), "--label", "My text"]) == 0
    assert "lambda_curves" not in json.loads((tmp_path / "measured" / "mine.json").read_text())
    row = "| My text | 40.00 | 36.00 | 37.00 | 75 % | 1.0, 300.0, 2.0 MB | 10, 30, 2,000 | 1,234 |"
    assert real_text.table().splitlines()[-1] == row


def test_a_missing_run_is_refused_with_the_command(tmp_path, capsys):
    assert real_text.main(["mine", "--runs", str(tmp_path), "--label", "My text"]) == 1
    assert "python -m train all mine" in capsys.readouterr().err


def test_a_plain_decoder_is_measured_on_the_windows_of_the_runs_test(tmp_path):
    assert real_text.plain(tmp_path / "mine") is None
    for name in ("mine", "mine-plain"):
        (tmp_path / name).mkdir()
        paths = tiny_run.stages(tmp_path / name, "text")
    how = {"window": 24, "stride": 12, "tokens": 60, "seed": 3}
    path = tmp_path / "mine" / "evaluate" / "manifest.json"
    write_json(path, read_json(path) | {"config": how})
    measured = real_text.plain(tmp_path / "mine")
    documents, positions = slide(Documents.load(paths["corpus"] / "test"), 24, 12, 60, 3)
    model, nll = Decoder.load(paths["decoder"]), []
    for position in positions:
        begin = documents.offsets[documents.passage_at(np.array([position]))[0]]
        ids = documents.tokens[begin : position + 1].tolist()
        logits = model.forward(torch.tensor([ids[:-1]]), last=1).logits[0, -1]
        nll.append(-logits.float().log_softmax(-1)[ids[-1]].item())
    assert measured["ppl"] == pytest.approx(np.exp(np.mean(nll)), rel=1e-4)
    assert measured["parameters"] == sum(w.numel() for w in model.model.parameters())
    saved = real_text.slim(RESULTS, "My text") | {"plain": measured}
    assert f" 75 % | {measured['ppl']:.2f} | 1.0" in real_text.markdown(
        [""] * 9, [real_text._row(saved)]
    )
