"""What a bundle says without its model: recorded comparisons, examples, results, settings.

Read as plain JSON, so that the first screen needs neither torch nor weights. Whatever is missing
or unreadable is left out here; the bundle's own loader is the one that complains.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlpmem.engine.trace import SOURCES, VERSION
from mlpmem.formats import is_number, parse_json
from mlpmem.loading.manifest import asks_questions
from mlpmem.model.prompts import question_prompt
from mlpmem.results.findings import measured
from mlpmem.retrieval.text_search import STRANGER

GROUPS = ("helps", "hurts", "agree", "unknown", "longer")
UNTRAINED = ("test", "unseen")  # wordings that no training text has
MAX_TITLES = 5000  # of a larger corpus the first: the page holds them all


@dataclass(frozen=True)
class Recorded:
    """Everything of a bundle that can be shown at once."""

    comparisons: list[dict] = field(default_factory=list)
    examples: list[dict] = field(default_factory=list)
    questions: list[dict] = field(default_factory=list)  # with known answers, no examples
    titles: list[list[str]] = field(default_factory=list)  # [name, group] of the entities
    results: dict | None = None
    settings: dict = field(default_factory=dict)
    attributions: list[str] = field(default_factory=list)
    questions_form: bool = False  # the decoder was trained on "Question: ... Answer:"

    def as_prompt(self, text: str) -> str:
        """Return a bare question in the form the bundle was trained on, any other text unchanged.

        What a decoder without such a form reads is never changed.
        """
        bare = text.rstrip().endswith("?") and "Answer:" not in text
        return (
            question_prompt(text.strip().removeprefix("Question:"))
            if (bare and self.questions_form)
            else text
        )

    def first(self) -> dict | None:
        """Return the comparison of the first screen, one where the memory helps if there is one."""
        helps = {e["prompt"] for e in self.examples if e["group"] == "helps"}
        preferred = [c for c in self.comparisons if c["prompt"] in helps]
        short = [c for c in self.comparisons if c["answer"]]
        return (preferred or short or self.comparisons or [None])[0]

    def text(self) -> str:
        """Return the longest recorded text of the memory with its prompt, "" without any."""
        found = [c["traces"].get("memory") or {} for c in self.comparisons]
        return max(
            (f"{t.get('prompt', '')}{t.get('text', '')}" for t in found), key=len, default=""
        )

    def comparison(self, prompt: str) -> dict | None:
        """Return the recording of a prompt, if there is one."""
        return next((c for c in self.comparisons if c["prompt"] == prompt), None)

    def known(self, prompt: str) -> dict[str, Any]:
        """Return {"answer", "aliases", "part", "wording"}: the truth, its other names, whose
        training had it, and whether its wording was held out.

        "" and [] where nothing is known of the prompt.
        """
        asked = (*self.questions, *self.examples)
        found = next((e for e in asked if e["prompt"] == prompt), {})
        return {"answer": "", "aliases": [], "part": "", "wording": ""} | {
            key: found[key] for key in ("answer", "aliases", "part", "wording") if key in found
        }

    @property
    def surprises(self) -> list[str]:
        """Return prompts on what the decoder never saw, in wordings that nobody trained on.

        Of a bundle without questions: the examples on what the decoder never saw.
        """
        new = [q for q in self.questions if q["part"] == "B" and q["wording"] in UNTRAINED]
        return [q["prompt"] for q in new or self.examples if q["part"] == "B"]

    def surprise(self) -> str:
        """Return one of the surprises, drawn anew each time; "" without any."""
        return self.question(self.surprises)

    @property
    def kept(self) -> list[str]:
        """Return prompts on what the decoder alone was trained on: what it may forget later."""
        return [q["prompt"] for q in self.questions if (q["part"], q["wording"]) == ("A2", "test")]

    @staticmethod
    def question(prompts: list[str]) -> str:
        """Return one of some prompts, drawn anew each time; "" without any."""
        return random.choice(prompts or [""])

    def defaults(self) -> dict[str, float]:
        """Return the bundle's best lambda of each source, 0.5 where the manifest has none."""
        best = _object(self.settings.get("lmbda"))
        found = {source: best.get(source) for source in ("memory", "knn")}
        return {source: float(v) if is_number(v) else 0.5 for source, v in found.items()}


def read(bundle: Path) -> Recorded:
    """Return what can be read of a bundle's folder; parts that cannot be read are empty."""
    manifest = _object(_json(bundle / "manifest.json"))
    examples = _json(bundle / "examples.json")
    results = _json(bundle / "results.json")
    questions = _json(bundle / "questions.json")
    found = [_json(path) for path in sorted((bundle / "traces").glob("*.json"))]
    comparisons = [c for c in map(_comparison, found) if c]
    return Recorded(
        comparisons=comparisons,
        examples=_examples(examples if isinstance(examples, list) else [], comparisons),
        questions=[_question(row) for row in _rows(questions)],
        titles=_titles(bundle / "documents"),
        results=measured(results),
        settings=_object(manifest.get("settings")),
        attributions=_texts(manifest.get("attributions")),
        questions_form=bool(manifest) and asks_questions(manifest),
    )


def _json(path: Path) -> Any:
    try:
        return parse_json(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _object(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _texts(value: Any) -> list[str]:
    return [str(text) for text in value] if isinstance(value, list) else []


def _examples(rows: list, comparisons: list[dict]) -> list[dict]:
    """Return the examples; recordings that are none become examples of longer texts."""
    kept = [
        _question(row) | {"group": row["group"] if row.get("group") in GROUPS else "helps"}
        for row in _rows(rows)
    ]
    there = {e["prompt"] for e in kept}
    return kept + [
        {"prompt": c["prompt"], "answer": c["answer"], "aliases": [], "part": "", "group": "longer"}
        for c in comparisons
        if c["prompt"] not in there
    ]


def _rows(rows: Any) -> list[dict]:
    """Return those that are objects with a prompt."""
    rows = rows if isinstance(rows, list) else []
    return [r for r in rows if isinstance(r, dict) and isinstance(r.get("prompt"), str)]


def _question(row: dict) -> dict:
    return {
        "prompt": row["prompt"],
        "answer": str(row.get("answer") or ""),
        "aliases": _texts(row.get("aliases")),
        "part": str(row.get("part") or ""),
        "wording": str(row.get("wording") or ""),
    }


def _titles(folder: Path) -> list[list[str]]:
    """Return [name, group] of the documents that are about something; brackets are left out."""
    titles, groups = (_json(folder / f"{name}.json") for name in ("titles", "groups"))
    if not isinstance(titles, list) or not isinstance(groups, list):
        return []
    names = {str(t).split(" (")[0]: str(g) for t, g in zip(titles, groups, strict=False)}
    asked = [[name, group] for name, group in names.items() if name and group != STRANGER]
    return asked[:MAX_TITLES]


def _comparison(row: Any) -> dict | None:
    if not isinstance(row, dict) or row.get("v") != VERSION:
        return None
    traces = row.get("traces")
    if not isinstance(traces, dict) or not isinstance(row.get("prompt"), str):
        return None
    kept = {s: traces[s] for s in SOURCES if isinstance(traces.get(s), dict)}
    if not kept or not all(isinstance(t.get("steps"), list) for t in kept.values()):
        return None
    return {"prompt": row["prompt"], "answer": str(row.get("answer") or ""), "traces": kept}
