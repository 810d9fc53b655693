"""Stage export: a bundle that serves, with examples found by asking and comparisons recorded."""

import json
import platform
import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import median

import torch

from mlpmem.adapters import CONFIG
from mlpmem.bundle import load_bundle, save_bundle
from mlpmem.datastore import Datastore
from mlpmem.decoder import Decoder
from mlpmem.errors import MlpMemError
from mlpmem.fused import FusedModel, Settings
from mlpmem.given import Given
from mlpmem.keycache import Fingerprint
from mlpmem.memory import Memory
from mlpmem.retriever import make_retriever
from mlpmem.router import load_routers
from mlpmem.trace import Trace
from train.corpus import read_lines
from train.evaluate import load_results
from train.prefixes import Shown, show_text
from train.recipe_after import Export
from train.stage import Context, finished_manifest, read_json

LONG, SHORT = 64, 12  # new tokens of a recorded description and of an answer
SEARCHED = 1500  # questions asked at most while looking for examples
DESCRIBED = 30  # real and invented entities described each, while looking for telling ones


def make_bundle(context: Context) -> dict:
    """Return counts; writes the bundle of the recipe into the stage's folder."""
    inputs, config = context.inputs, context.config
    results = load_results(inputs["evaluate"])
    model, store = _model(inputs, results, config.name, config.auto)
    kind = finished_manifest(inputs["corpus"])["config"]["kind"]
    show = {"atlas": _show_atlas, "text": show_text}[kind]
    adapters = tuned_adapters(inputs["finetuned"], config.adapters)  # refused before it takes long
    shown = show(model, inputs["corpus"], config, context.seed)
    results["cost"] = cost(shown.answered) | {
        "keys": len(store),
        "build_seconds": finished_manifest(inputs["datastore"])["seconds"],
    }
    results["stages"] = {
        name: {k: finished_manifest(path)[k] for k in ("seconds", "peak_memory_bytes")}
        for name, path in inputs.items()
    }
    save_bundle(
        context.folder / config.name,
        decoder=model.decoder,
        memory=model.memory,
        documents=store.documents,
        settings=model.settings,
        fingerprint=Fingerprint.of(store.keys),
        routers=load_routers(inputs["router"]),
        adapters=adapters,
        results=results,
        examples=shown.examples,
        questions=shown.questions,
        traces=shown.recorded,
        attributions=_attributions(inputs["corpus"] / "attributions.json"),
        name=config.name,
        created_with={"torch": torch.__version__, "python": platform.python_version()},
    )
    load_bundle(context.folder / config.name)
    return {"examples": len(shown.examples), "traces": len(shown.recorded)}


def tuned_adapters(finetuned: Path, names: Sequence[str]) -> list[Given]:
    """Return the adapters of these rows of finetuned.json as columns "finetuned", "finetuned_2" ...

    MlpMemError for a row that is not there, is no LoRA, or whose weights were not kept.
    """
    path = finetuned / "finetuned.json"
    rows = {row["name"]: row for row in (read_json(path) if names and path.is_file() else [])}
    kept = [n for n, row in rows.items() if row["rank"] and (finetuned / n / CONFIG).is_file()]
    found = []
    for name in names:
        if name not in kept:
            raise MlpMemError(
                f"[export] adapters: {name!r} is no kept LoRA of {finetuned}, there is "
                f"{', '.join(kept) or 'none'}; correct the recipe, or set [finetuned] lora"
            )
        row, column = rows[name], f"finetuned_{len(found) + 1}" if found else "finetuned"
        found.append(Given(column, finetuned / name, "adapter", row["label"], row["seconds"]))
    return found


def _show_atlas(model: FusedModel, corpus: Path, config: Export, seed: int) -> Shown:
    """Return what a bundle of the atlas shows, found by asking."""
    questions = read_lines(corpus / "questions.jsonl")
    random.Random(seed).shuffle(questions)
    examples, answered = find_examples(model, questions, config)
    abouts = read_lines(corpus / "abouts.jsonl")
    abouts = telling_abouts(model, abouts, questions, config.abouts)
    recorded = record(model, examples, abouts, config)
    return Shown(examples, untrained(questions, config.questions), recorded, answered)


def _model(
    inputs: dict[str, Path], results: dict, name: str, auto: bool
) -> tuple[FusedModel, Datastore]:
    """Return the model as the bundle will serve it, and its datastore."""
    settings = Settings(
        lmbda=results["lmbda"],
        k=results["config"]["k"],
        knn_temperature=results["config"]["temperature"],
        auto=auto,
    )
    memory = Memory.load(inputs["memory"]).float().eval()
    decoder = Decoder.load(inputs["decoder"], depth=memory.config.depth)
    store = Datastore.load(inputs["datastore"])
    model = FusedModel(decoder, memory, settings, name, load_routers(inputs["router"]))
    model.attach_datastore(store, make_retriever(None, store.keys))
    return model, store


def find_examples(
    model: FusedModel, questions: list[dict], config: Export
) -> tuple[list[dict], list[dict[str, Trace]]]:
    """Return example prompts in four groups of about equal size, and the comparisons made.

    Real entities come first, in wordings held out of all training; what a group means is decided
    by what the decoder and the memory really answer. Of those the memory helps with, the ones that
    the datastore knows too come first: a newcomer should not meet its mistakes before its use.
    """
    pool = [q for q in questions if q["wording"] == "test" and q["kind"] == "question"]
    pool.sort(key=lambda q: q["invented"])
    wanted = {g: config.examples // 4 for g in ("helps", "hurts", "agree", "unknown")}
    streams = {
        "helps": _spread(pool, ("B",)),
        "agree": _spread(pool, ("A1", "A2")),
        "hurts": _spread(pool[::-1], ("A2",)),
        "unknown": _spread([q for q in questions if q["wording"] == "unseen"], ("B",)),
    }
    examples, answered, missed = [], [], set()
    for group, stream in streams.items():
        for question in islice(stream, SEARCHED):
            if sum(e["group"] == group for e in examples) >= wanted[group]:
                break
            traces = model.compare(question["prompt"], ["lm", "memory"], max_new_tokens=SHORT)
            fits = judge(traces, question) == group
            if fits or not answered:  # the datastore is slow, and one answer tells what it costs
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
    """Return questions for questions.json: wordings held out of all training, B and A2 in halves.

    They are drawn as they come; what the model answers plays no part.
    """
    pool = [q for q in questions if q["wording"] in ("test", "unseen") and q["kind"] == "question"]
    kept = ("prompt", "answer", "aliases", "title", "wording")
    return [
        {key: question[key] for key in kept} | {"part": group}
        for group in ("B", "A2")
        for question in islice(_spread(pool, (group,)), count // 2)
    ]


def _spread(pool: list[dict], groups: tuple[str, ...]):
    """Yield questions of some groups, a different relation each time as long as there are any."""
    by_relation: dict[str, list[dict]] = {}
    for question in pool:
        if question["group"] in groups:
            by_relation.setdefault(question["relation"], []).append(question)
    while any(by_relation.values()):
        for members in by_relation.values():
            if members:
                yield members.pop(0)


def judge(traces: dict[str, Trace], question: dict) -> str:
    """Return which group of examples a comparison belongs to."""
    right = {name: is_right(trace.text, question) for name, trace in traces.items()}
    if right["lm"]:
        return "agree" if right["memory"] else "hurts"
    return "helps" if right["memory"] else "unknown"


def is_right(text: str, question: dict) -> bool:
    """Return whether a generated text is the answer or one of its aliases, and nothing else."""
    said = text.strip().rstrip(".").casefold()
    return said in {a.casefold() for a in (question["answer"], *question["aliases"])}


def _example(question: dict, group: str) -> dict:
    """Return one entry of examples.json."""
    kept = {k: question[k] for k in ("prompt", "answer", "aliases", "title", "invented")}
    return {"name": question["title"], "group": group, "part": question["group"]} | kept


def record(
    model: FusedModel, examples: list[dict], abouts: list[dict], config: Export
) -> list[dict]:
    """Return recorded comparisons: the descriptions that show most, then short answers."""
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


def telling_abouts(
    model: FusedModel, abouts: list[dict], questions: list[dict], count: int
) -> list[dict]:
    """Return descriptions of B's entities in which the memory gets most facts, the decoder fewest.

    A fact counts where its answer stands in the text; real entities are tried first.
    """
    answers: dict[str, set[str]] = {}
    for question in questions:
        answers.setdefault(question["title"], set()).add(question["answer"])
    pool = [a for a in abouts if a["group"] == "B" and a["wording"] == "seen"]
    pool.sort(key=lambda a: "(invented" in a["title"])
    scored = []
    for about in pool[:DESCRIBED] + pool[DESCRIBED:][-DESCRIBED:]:
        traces = model.compare(about["prompt"], ["lm", "memory"], max_new_tokens=LONG)
        found = {
            name: sum(answer in trace.text for answer in answers[about["title"]])
            for name, trace in traces.items()
        }
        scored.append((found["memory"] - found["lm"], about))
    scored.sort(key=lambda pair: -pair[0])
    return [about for _, about in scored[:count]]


def cost(answered: list[dict[str, Trace]]) -> dict:
    """Return medians of milliseconds a token and the bytes of every part."""
    costs = [trace.cost for traces in answered for trace in traces.values()]
    parts = ("decoder_ms", "memory_ms", "search_ms", "prefill_ms")
    sizes = ("decoder_bytes", "memory_bytes", "datastore_bytes")
    found = {p: [c[p] for c in costs if c.get(p)] for p in parts}
    return {p: round(median(values), 3) for p, values in found.items() if values} | {
        s: max(c.get(s, 0) for c in costs) for s in sizes
    }


def _attributions(path: Path) -> list[str]:
    """Return one line for each source of facts: name, version, licence, what was taken."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [
        ", ".join(str(value) for value in row.values()) if isinstance(row, dict) else str(row)
        for row in rows
    ]
