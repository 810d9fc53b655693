"""README says what the shipped results say, and speaks of files that exist."""

import json
import re
from pathlib import Path

from train.report.__main__ import ROOT, fill

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tables_are_those_of_the_shipped_results():
    results = json.loads((ROOT / "assets/atlas/results.json").read_text(encoding="utf-8"))
    assert fill(README, results) == README, "run `python -m train.report`"


def test_every_file_of_the_tree_exists():
    tree = README.split("## The tree")[1].split("```")[1]
    names = re.findall(r"[\w/]+\.(?:py|toml)", tree)
    assert len(names) > 40
    found = {p.name for folder in ("mlpmem", "train", "tests") for p in (ROOT / folder).rglob("*")}
    found |= {p.name for p in ROOT.iterdir()}
    assert not [name for name in names if Path(name).name not in found]


def test_pictures_exist():
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file(), path
