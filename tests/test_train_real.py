"""What a text recipe measured is kept slim, and becomes a row of README's table."""

import json

from train import real

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


def test_a_run_is_kept_without_its_curves_and_told_in_one_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(real, "KEPT", tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    folder = tmp_path / "mine" / "export" / "mine"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(RESULTS))
    assert real.main(["mine", "--runs", str(tmp_path), "--label", "My text"]) == 0
    assert "lambda_curves" not in json.loads((tmp_path / "kept" / "mine.json").read_text())
    row = "| My text | 40.00 | 36.00 | 37.00 | 75 % | 1.0, 300.0, 2.0 MB | 10, 30, 2,000 | 1,234 |"
    assert real.table().splitlines()[-1] == row


def test_a_run_that_is_not_there_says_what_to_do(tmp_path, capsys):
    assert real.main(["mine", "--runs", str(tmp_path), "--label", "My text"]) == 1
    assert "python -m train all mine" in capsys.readouterr().err
