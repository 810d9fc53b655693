"""The browser's engine under node, and what its answers are compared with."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent / "js"
NODE = shutil.which("node")
QUESTION = "Question: What is the capital of Peru? Answer:"
OPTIONS = {"max_new_tokens": 12}


def node(listing: dict, folder: Path, *tasks: dict, plain: bool = False) -> dict:
    """Return the engine's answers to some tasks; see tests/js/live.mjs."""
    request = {"live": listing, "folder": str(folder), "plain": plain, "tasks": tasks}
    done = subprocess.run(
        [NODE, "live.mjs"], cwd=TOOLS, input=json.dumps(request), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def answers(listing, folder, *tasks, **options) -> list:
    """Return the results of tasks; the engine must not fail."""
    answer = node(listing, folder, *tasks, **options)
    assert "error" not in answer, answer
    return answer["results"]


def plan(kind: str = "compare", **values) -> dict:
    defaults = {"kind": kind, "prompt": QUESTION, "lmbda": None, "options": OPTIONS, "forced": [],
                "own": False}  # fmt: skip
    return {"plan": defaults | values}


def same_steps(ours: list[dict], theirs: list) -> None:
    """Assert that steps of the engine and of Python have the same values.

    With fewer than 8 neighbours' tokens, Python fills up with tokens of no neighbour, in any order.
    """
    assert [step["id"] for step in ours] == [step.token_id for step in theirs]
    for own, step in zip(ours, theirs, strict=True):
        wanted = step.to_dict()
        assert own.keys() == wanted.keys()
        for key in ("i", "s", "id"):
            assert own[key] == wanted[key]
        assert own["p"] == pytest.approx(wanted["p"], abs=1e-5)
        assert own.get("lmbda", 0) == pytest.approx(wanted.get("lmbda", 0), abs=2e-6)
        rows = {row[0]: row[1:] for row in wanted["cand"]}
        listed = {row[0]: row[1] for row in own["cand"]}
        extra = rows.keys() - listed.keys()
        assert listed == {i: row[0] for i, row in rows.items() if i not in extra}
        assert all(rows[i][3] == 0 for i in extra)
        for j, name in enumerate(name for name in ("lm", "memory", "knn") if name in own["rest"]):
            left = wanted["rest"][name] + sum(rows[i][1 + j] for i in extra)
            assert own["rest"][name] == pytest.approx(left, abs=1e-5)
        for i, _, *probs in own["cand"]:
            for p, q in zip(probs, rows[i][1:], strict=True):
                assert p == (None if q is None else pytest.approx(q, abs=1e-5))


def foreign(listing: dict, folder: Path, name: str, data: bytes) -> dict:
    """Return a listing with other bytes for a file."""
    place = f"model/foreign-{name.replace('/', '-')}"
    (folder / place).write_bytes(data)
    return {**listing, "files": {**listing["files"], name: {"parts": [place]}}}
