"""What does training cost? Every stage's manifest, and the fine-tuned decoders for comparison.

Seconds, peak memory and bytes were measured when the stage ran. FLOP is computed by
`train/run/needs.py`, a tuned decoder's by `train/stages/finetuned.py`. A stage that has not run is
left out.
"""

from collections.abc import Iterator

import numpy as np

from mlpmem.retrieval.documents import Documents
from train.files import read_json
from train.measure.findings import Finding
from train.run.needs import Need, needs
from train.run.stage import finished_manifest
from train.studies.run import Run

STAGES = ("corpus", "decoder", "datastore", "targets", "memory")  # those that make the served parts
MEASURED = {"seconds": "seconds", "peak_memory": "peak_memory_bytes", "bytes": "bytes"}


def ledger(run: Run) -> Iterator[Finding]:
    """Yield seconds, tokens, FLOP, peak memory (bytes) and bytes on disk by stage and system."""
    run.manifest("corpus")
    needed = needs(run.recipe, run.root)
    for stage in STAGES:
        manifest = finished_manifest(run.root / stage)
        if manifest is not None:
            yield from _stage(run, stage, needed[stage], manifest)
    if finished_manifest(run.root / "finetuned") is not None:
        for row in read_json(run.root / "finetuned" / "finetuned.json"):
            yield from _finetuned(run, row)


def _stage(run: Run, stage: str, need: Need, manifest: dict) -> Iterator[Finding]:
    """Yield one stage's costs."""
    for metric, key in MEASURED.items():
        if key in manifest:
            yield run.finding("memory", stage, metric, manifest[key])
    yield run.finding("memory", stage, "tokens", need.tokens)
    yield run.finding("memory", stage, "flop", need.flops)


def _finetuned(run: Run, row: dict) -> Iterator[Finding]:
    """Yield the costs of a fine-tuned decoder ("finetuned") or of its LoRA ("lora")."""
    documents = Documents.load(run.root / "corpus" / "memory")
    tokens = row["epochs"] * group_tokens(documents, row["groups"].split("+"))
    system, known = ("lora", ("rank",)) if row["rank"] else ("finetuned", ())
    setting = {key: row[key] for key in ("groups", "lr", "epochs", *known)}
    for metric, value in (("seconds", row["seconds"]), ("tokens", tokens), ("flop", row["flops"])):
        yield run.finding(system, "decoder", metric, value, **setting)


def group_tokens(documents: Documents, groups: list[str]) -> int:
    """Return the number of tokens of some groups' documents."""
    mask = np.isin(np.array(documents.groups)[documents.document_of], groups)
    return int(np.diff(documents.offsets)[mask].sum())
