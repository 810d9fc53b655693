"""The folders a run of tiny stages would have left, for tests of the stages that read them."""

import dataclasses
from pathlib import Path

import tiny

from mlpmem.engine.router import Router, RouterConfig
from train.config.tables import DecoderConfig
from train.files import write_json, write_lines

RESULTS = {
    "v": 1,
    "lmbda": {"memory": 0.5, "knn": 0.6},
    "config": {"k": 9, "temperature": 3.0},
    "systems": [],
}


def question(number: int = 0, group: str = "B", **other) -> dict:
    """Return one line of questions.jsonl."""
    return {
        "prompt": f"Question: What is {group} {number}? Answer:",
        "answer": f"It {number}",
        "aliases": ["It is so"],
        "group": group,
        "relation": f"relation {number % 3}",
        "title": f"Title {group} {number}",
        "entity": f"{group} {number}",
        "invented": number % 2 == 0,
        "kind": "question",
        "wording": "test",
    } | other


def questions(groups: tuple[str, ...] = ("A1", "A2", "B")) -> list[dict]:
    """Return two questions of every group and wording, and two statements of every group."""
    rows = []
    for group in groups:
        for number in range(2):
            for wording in ("seen", "dev", "test", "unseen"):
                rows.append(question(number, group, wording=wording))
            said = {"prompt": f"{group} {number} is", "kind": "statement"}
            rows.append(question(number, group, **said))
    return rows


def stages(root: Path, kind: str = "atlas") -> dict[str, Path]:
    """Write the folders of a kind of corpus below root; return them by the stage's name."""
    names = ("corpus", "decoder", "datastore", "targets", "memory", "router", "finetuned")
    names += ("evaluate",)
    paths = {name: root / name for name in names}
    for name, path in paths.items():
        path.mkdir()
        recipe = DecoderConfig(row=80, batch=100, dtype="float32", processes=1)
        config = {"corpus": {"kind": kind}, "decoder": dataclasses.asdict(recipe) | {"seed": 0}}
        manifest = {
            "seconds": 2.5,
            "peak_memory_bytes": 7,
            "outputs": {},
            "config": config.get(name, {}),
        }
        write_json(path / "manifest.json", manifest | {"counts": {"tokens": 5}})
    bound = tiny.decoder()
    bound.model.save_pretrained(paths["decoder"])
    for folder in (paths["decoder"], paths["corpus"] / "tokenizer"):
        bound.tokenizer.save_pretrained(folder)
    tiny.memory(bound).save(paths["memory"])
    for system in ("memory", "knn"):
        config = RouterConfig(system, bound.vocab_size, bound.tokenizer_hash)
        Router(config).save(paths["router"] / system)
    tiny.datastore(bound).save(paths["datastore"])
    parts = {"text": ("memory", "valid", "test")}.get(kind, ("memory", "heldout"))
    for part in parts:
        tiny.documents().save(paths["corpus"] / part)
    rows = questions(("real", "invented")) if kind == "chat" else questions()
    write_lines(paths["corpus"] / "questions.jsonl", rows)
    write_lines(paths["corpus"] / "abouts.jsonl", [question(i, wording="seen") for i in range(2)])
    sources = [{"name": "somewhere", "version": "1", "licence": "MIT"}, "us"]
    write_json(paths["corpus"] / "attributions.json", sources)
    write_json(paths["finetuned"] / "finetuned.json", [{"name": "finetuned_B_0.001_1"}])
    write_json(paths["evaluate"] / "results.json", RESULTS)
    return paths
