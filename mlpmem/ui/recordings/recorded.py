"""A bundle's recorded comparisons, examples, results and settings, read without its model.

They are plain JSON, so the first screen needs neither torch nor weights. Missing or unreadable
parts are skipped; the bundle's own loader reports them.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlpmem.engine.trace import SOURCES, VERSION
from mlpmem.formats import is_number, read_json
from mlpmem.loading.manifest import FINGERPRINT, MANIFEST, asks_chats, asks_questions, is_link
from mlpmem.model.prompts import question_prompt
from mlpmem.results.findings import measured
from mlpmem.retrieval.text_search import STRANGER

GROUPS = ("helps", "hurts", "agree", "unknown", "longer")
UNTRAINED = ("test", "unseen")  # wordings that are in no training text
MAX_TITLES = 5000  # titles sent to the page
RIVALS = 3  # different answers of the first comparison, from lambda 0 to 1
MAX_NAME = 40  # characters of a bundle's name


@dataclass(frozen=True)
class Recorded:
    """The content of a bundle that is shown before the model is loaded."""

    comparisons: list[dict] = field(default_factory=list)
    examples: list[dict] = field(default_factory=list)
    questions: list[dict] = field(default_factory=list)  # with answers; no examples
    titles: list[list[str]] = field(default_factory=list)  # [name, group] of the entities
    results: dict | None = None
    settings: dict = field(default_factory=dict)
    attributions: list[str] = field(default_factory=list)
    name: str = ""  # the bundle's
    decoder: dict = field(default_factory=dict)  # its config.json
    context: bool = False  # the memory also reads the words so far
    questions_form: bool = False  # the decoder was trained on "Question: ... Answer:"
    systems: tuple[str, ...] = SOURCES  # the columns of a bundle, also before it is loaded
    chat_form: bool = False  # prompts are asked as chats, as the memory's questions were
    memory_bytes: int = 0  # of the memory's file, 0 if it is not listed

    def as_prompt(self, text: str) -> str:
        """Return a bare question in the form that the decoder was trained on, if it has one.

        Any other text is unchanged.
        """
        bare = text.rstrip().endswith("?") and "Answer:" not in text
        return question_prompt(text) if bare and self.questions_form else text

    def first(self) -> dict | None:
        """Return the first screen's comparison, if possible one where the memory helps.

        Of those, one whose answer changes twice as lambda grows comes first.
        """
        helps = {e["prompt"] for e in self.examples if e["group"] == "helps"}
        preferred = [c for c in self.comparisons if c["prompt"] in helps]
        preferred.sort(key=lambda c: abs(_answers(c) - RIVALS))
        short = [c for c in self.comparisons if c["answer"]]
        return (preferred or short or self.comparisons or [None])[0]

    def text(self) -> str:
        """Return the longest recorded text of the memory with its prompt, "" without any."""
        traces = [c["traces"].get("memory") or {} for c in self.comparisons]
        return max(
            (f"{t.get('prompt', '')}{t.get('text', '')}" for t in traces), key=len, default=""
        )

    def comparison(self, prompt: str) -> dict | None:
        """Return the recorded comparison of a prompt, or None."""
        return next((c for c in self.comparisons if c["prompt"] == prompt), None)

    def known(self, prompt: str) -> dict[str, Any]:
        """Return {"answer", "aliases", "part", "wording"} of a prompt, "" and [] if unknown.

        "answer" is the truth, "aliases" its other names, "part" the group of its entity, and
        "wording" tells whether the wording was held out.
        """
        rows = (*self.questions, *self.examples)
        row = next((e for e in rows if e["prompt"] == prompt), {})
        return {"answer": "", "aliases": [], "part": "", "wording": ""} | {
            key: row[key] for key in ("answer", "aliases", "part", "wording") if key in row
        }

    @property
    def surprises(self) -> list[str]:
        """Return prompts on facts that only the memory learned, in untrained wordings.

        Those of an atlas are about group B. Without questions, the examples on such entities.
        """
        learned = [q for q in self.questions if self.chat_form or q["part"] == "B"]
        new = [q for q in learned if q["wording"] in UNTRAINED]
        if self.chat_form and new:
            return [q["prompt"] for q in new]
        return [q["prompt"] for q in new or self.examples if q["part"] == "B"]

    def surprise(self) -> str:
        """Return a random surprise, "" without any."""
        return self.question(self.surprises)

    @property
    def kept(self) -> list[str]:
        """Return prompts on entities of the decoder's own training, which tuning may erase."""
        return [q["prompt"] for q in self.questions if (q["part"], q["wording"]) == ("A2", "test")]

    @staticmethod
    def question(prompts: list[str]) -> str:
        """Return a random prompt, "" without any."""
        return random.choice(prompts or [""])

    def defaults(self) -> dict[str, float]:
        """Return the manifest's lambda of each source, 0.5 by default."""
        best = _object(self.settings.get("lmbda"))
        lmbdas = {source: best.get(source) for source in ("memory", "knn")}
        return {source: float(v) if is_number(v) else 0.5 for source, v in lmbdas.items()}


def read(bundle: Path) -> Recorded:
    """Return the content of a bundle's folder.

    Unreadable files, links, and files that the manifest does not list are skipped.
    """
    manifest = _object(_json(bundle / MANIFEST))
    listed = manifest.get("files")

    def value(path: Path) -> Any:
        name = path.relative_to(bundle).as_posix()
        hidden = is_link(bundle, path) or path.parent != bundle and path.parent.is_symlink()
        return None if hidden or isinstance(listed, dict) and name not in listed else _json(path)

    examples, results, questions = (
        value(bundle / f"{name}.json") for name in ("examples", "results", "questions")
    )
    rows = [value(path) for path in sorted((bundle / "traces").glob("*.json"))]
    comparisons = [c for c in map(_comparison, rows) if c]
    return Recorded(
        comparisons=comparisons,
        examples=_examples(examples if isinstance(examples, list) else [], comparisons),
        questions=[_question(row) for row in _rows(questions)],
        titles=_titles(*(value(bundle / "documents" / f"{n}.json") for n in ("titles", "groups"))),
        results=measured(results),
        settings=_object(manifest.get("settings")),
        attributions=_texts(manifest.get("attributions")),
        name=str(manifest.get("name") or "")[:MAX_NAME],
        decoder=_object(value(bundle / "decoder" / "config.json")),
        context=bool(_object(value(bundle / "memory" / "config.json")).get("context")),
        questions_form=bool(manifest) and asks_questions(manifest),
        systems=_systems(listed),
        chat_form=asks_chats(manifest),
        memory_bytes=_size(_object(_object(listed).get("memory/model.safetensors"))),
    )


def _size(row: dict) -> int:
    """Return the bytes of a file that a manifest lists, 0 for none."""
    size = row.get("bytes")
    return size if type(size) is int and size > 0 else 0


def _systems(listed: Any) -> tuple[str, ...]:
    """Return the columns of a bundle by its listed files; without a fingerprint it has no keys."""
    searches = not isinstance(listed, dict) or FINGERPRINT in listed
    return SOURCES if searches else tuple(s for s in SOURCES if s != "knn")


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def _object(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _texts(value: Any) -> list[str]:
    return [str(text) for text in value] if isinstance(value, list) else []


def _examples(rows: list, comparisons: list[dict]) -> list[dict]:
    """Return the examples; other recordings become examples of the group "longer"."""
    examples = [
        _question(row) | {"group": row["group"] if row.get("group") in GROUPS else "helps"}
        for row in _rows(rows)
    ]
    prompts = {e["prompt"] for e in examples}
    return examples + [
        {"prompt": c["prompt"], "answer": c["answer"], "aliases": [], "part": "", "group": "longer"}
        for c in comparisons
        if c["prompt"] not in prompts
    ]


def _rows(rows: Any) -> list[dict]:
    """Return the objects with a prompt among rows."""
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


def _titles(titles: Any, groups: Any) -> list[list[str]]:
    """Return [name, group] of the documents about an entity, without the names' brackets."""
    if not isinstance(titles, list) or not isinstance(groups, list):
        return []
    names = {str(t).split(" (")[0]: str(g) for t, g in zip(titles, groups, strict=False)}
    pairs = [[name, group] for name, group in names.items() if name and group != STRANGER]
    return pairs[:MAX_TITLES]


def _comparison(row: Any) -> dict | None:
    if not isinstance(row, dict) or row.get("v") != VERSION:
        return None
    traces = row.get("traces")
    if not isinstance(traces, dict) or not isinstance(row.get("prompt"), str):
        return None
    traces = {s: traces[s] for s in SOURCES if isinstance(traces.get(s), dict)}
    if not traces or not all(isinstance(t.get("steps"), list) for t in traces.values()):
        return None
    comparison = {"prompt": row["prompt"], "answer": str(row.get("answer") or ""), "traces": traces}
    scrubs = {s: one for s, one in _object(row.get("scrubs")).items() if s in traces and _fits(one)}
    return comparison | {"paced": row.get("paced") is True, "scrubs": scrubs}


def _fits(scrub: Any) -> bool:
    """Return whether a recorded column's texts at several lambdas are complete."""
    texts, cost = (_object(scrub).get(key) for key in ("texts", "cost"))
    if not isinstance(texts, list) or not texts or not isinstance(cost, dict):
        return False
    return is_number(cost.get("seconds")) and all(
        isinstance(text, dict)
        and isinstance(text.get("steps"), list)
        and isinstance(text.get("text"), str)
        and is_number(text.get("lmbda"))
        and type(text.get("like")) is type(text.get("kept")) is int
        and (text["like"] < at or not text["kept"])
        for at, text in enumerate(texts)
    )


def _answers(comparison: dict) -> int:
    """Return the number of different texts of the memory's column from lambda 0 to 1."""
    texts = comparison["scrubs"].get("memory", {}).get("texts", ())
    return len({text["text"] for text in texts})
