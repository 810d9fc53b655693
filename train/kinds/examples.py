"""What a bundle shows of an atlas: examples, questions and recorded comparisons."""

from itertools import islice

from mlpmem.api import Model
from mlpmem.engine.trace import Trace
from train.config.tables import ExportConfig

LONG, SHORT = 64, 12  # new tokens of a recorded description and of an answer
SEARCHED = 1500  # questions tried per group, at most
DESCRIBED = 30  # real entities tried, and as many invented ones


def find_examples(
    model: Model, questions: list[dict], config: ExportConfig
) -> tuple[list[dict], list[dict[str, Trace]]]:
    """Return example prompts in four groups of about equal size, and full comparisons for cost.

    The answers of decoder and memory decide the group. Wordings are held out of all training, and
    real entities come first. Of the group "helps", examples that the datastore also answers come
    first, so that a newcomer sees its use before its mistakes.
    """
    pool = [q for q in questions if q["wording"] == "test" and q["kind"] == "question"]
    pool.sort(key=lambda q: q["invented"])
    streams = {
        "helps": _spread(pool, ("B",)),
        "agree": _spread(pool, ("A1", "A2")),
        "hurts": _spread(pool[::-1], ("A2",)),
        "unknown": _spread([q for q in questions if q["wording"] == "unseen"], ("B",)),
    }
    examples, answered, missed = [], [], set()
    for group, stream in streams.items():
        for question in islice(stream, SEARCHED):
            if sum(e["group"] == group for e in examples) >= config.examples // 4:
                break
            traces = model.compare(question["prompt"], ["lm", "memory"], max_new_tokens=SHORT)
            fits = example_group(traces, question) == group
            if fits or not answered:  # the datastore is slow, and one answer shows its cost
                traces = model.compare(question["prompt"], max_new_tokens=SHORT)
                answered.append(traces)
            if fits:
                examples.append(_example(question, group))
                if group == "helps" and not is_right(traces["knn"].text, question):
                    missed.add(question["prompt"])
    order = list(streams)
    examples.sort(key=lambda e: (order.index(e["group"]), e["prompt"] in missed))
    return examples, answered


def untrained(questions: list[dict], count: int) -> list[dict]:
    """Return questions for questions.json in wordings held out of all training, half B, half A2.

    The model's answers play no part in the choice.
    """
    pool = [q for q in questions if q["wording"] in ("test", "unseen") and q["kind"] == "question"]
    fields = ("prompt", "answer", "aliases", "title", "wording")
    return [
        {key: question[key] for key in fields} | {"part": group}
        for group in ("B", "A2")
        for question in islice(_spread(pool, (group,)), count // 2)
    ]


def _spread(pool: list[dict], groups: tuple[str, ...]):
    """Yield the questions of some groups, one relation after another."""
    by_relation: dict[str, list[dict]] = {}
    for question in pool:
        if question["group"] in groups:
            by_relation.setdefault(question["relation"], []).append(question)
    while any(by_relation.values()):
        for members in by_relation.values():
            if members:
                yield members.pop(0)


def example_group(traces: dict[str, Trace], question: dict) -> str:
    """Return the example group of a comparison."""
    right = {name: is_right(trace.text, question) for name, trace in traces.items()}
    if right["lm"]:
        return "agree" if right["memory"] else "hurts"
    return "helps" if right["memory"] else "unknown"


def is_right(text: str, question: dict) -> bool:
    """Return whether a generated text is exactly the answer or one of its aliases."""
    normalised = text.strip().rstrip(".").casefold()
    return normalised in {a.casefold() for a in (question["answer"], *question["aliases"])}


def _example(question: dict, group: str) -> dict:
    """Return one entry of examples.json."""
    fields = {k: question[k] for k in ("prompt", "answer", "aliases", "title", "invented")}
    return {"name": question["title"], "group": group, "part": question["group"]} | fields


def record(
    model: Model, examples: list[dict], abouts: list[dict], config: ExportConfig
) -> list[dict]:
    """Return recorded comparisons: descriptions first, then short answers."""
    chosen = [(a["prompt"], a["title"], None, LONG) for a in abouts]
    short = [e for e in examples if e["group"] == "helps"] + examples
    chosen += [(e["prompt"], e["title"], e["answer"], SHORT) for e in short]
    recorded = []
    for prompt, title, answer, length in chosen[: config.traces]:
        traces = model.compare(prompt, max_new_tokens=length)
        values = {name: trace.to_dict() for name, trace in traces.items()}
        recorded.append(
            {"v": 1, "name": title, "prompt": prompt, "answer": answer, "traces": values}
        )
    return recorded


def best_descriptions(
    model: Model, abouts: list[dict], questions: list[dict], count: int
) -> list[dict]:
    """Return the prompts about B's entities where the memory adds most facts to the decoder's.

    A fact counts if its answer occurs in the text. Real entities are tried first.
    """
    answers: dict[str, set[str]] = {}
    for question in questions:
        answers.setdefault(question["title"], set()).add(question["answer"])
    pool = [a for a in abouts if a["group"] == "B" and a["wording"] == "seen"]
    pool.sort(key=lambda a: "(invented" in a["title"])
    scored = []
    for about in pool[:DESCRIBED] + pool[DESCRIBED:][-DESCRIBED:]:
        traces = model.compare(about["prompt"], ["lm", "memory"], max_new_tokens=LONG)
        facts = {
            name: sum(answer in trace.text for answer in answers[about["title"]])
            for name, trace in traces.items()
        }
        scored.append((facts["memory"] - facts["lm"], about))
    scored.sort(key=lambda pair: -pair[0])
    return [about for _, about in scored[:count]]
