"""Complete recorded comparisons: `python -m mlpmem.loading.recorder BUNDLE`.

A comparison runs all systems as one batch, whose steps take the batch's time. Here each system also
runs without the others, and its steps get that time, so that the page can play every column at its
own pace. Short answers get their texts at eleven lambdas, so that the slider changes them at once.
Texts and probabilities stay as they were.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlpmem.engine.trace import PARTS, shared_steps
from mlpmem.errors import MlpMemError
from mlpmem.formats import read_json
from mlpmem.loading.manifest import MANIFEST, list_files, read_manifest

RUNS = 5  # of each system; a step's time is the smallest, the one with the least disturbance
SHORT = 12  # tokens of an answer that is scrubbed


def completed(model: Any, row: Mapping[str, Any]) -> dict:
    """Return a recorded comparison with each system's own times and short answers' texts."""
    traces = {name: paced(model, trace) for name, trace in row["traces"].items()}
    scrubs = {
        name: scrubbed(model, trace)
        for name, trace in traces.items()
        if PARTS.get(name) and len(trace["steps"]) <= SHORT
    }
    return {**row, "traces": traces, "paced": True, "scrubs": scrubs}


def paced(model: Any, trace: Mapping[str, Any]) -> dict:
    """Return a trace whose steps and costs have the times of the system without others, in ms.

    MlpMemError if the system writes another text than the recorded one.
    """
    ids = [step["id"] for step in trace["steps"]]
    runs, costs = [], []
    for _ in range(RUNS):
        last, times = time.perf_counter(), []
        options = {"lmbda": trace["lmbda"], "max_new_tokens": len(ids)}
        for event in model.stream(trace["prompt_ids"], [trace["system"]], **options):
            now = time.perf_counter()
            if event.kind == "step":
                times.append(1000 * (now - last))
            last = now
        written = event.values[trace["system"]].steps
        if [step.token_id for step in written] != ids:
            raise MlpMemError(
                f"recorder: {trace['system']} wrote another text than the recorded "
                f"{trace['text'][:60]!r}; export the bundle again"
            )
        runs.append(times)
        costs.append(event.values[trace["system"]].cost)
    best = [round(min(times), 2) for times in zip(*runs, strict=True)]
    steps = [{**step, "ms": ms} for step, ms in zip(trace["steps"], best, strict=True)]
    least = {part: min(cost[part] for cost in costs) for part in costs[0]}
    return {**trace, "steps": steps, "cost": {**trace["cost"], **least}}


def scrubbed(model: Any, trace: Mapping[str, Any]) -> dict:
    """Return {"texts", "cost"} of a system at eleven lambdas, as the page scrubs it."""
    settings = trace["settings"]
    options = {
        "max_new_tokens": settings.get("max_new_tokens", SHORT),
        "sources": [part for part in ("lm", "memory", "knn") if part in trace["steps"][0]["p"]],
    }
    begin = time.perf_counter()
    model.compare(trace["prompt_ids"], [trace["system"]], lmbda=trace["lmbda"], **options)
    single = time.perf_counter() - begin
    begin = time.perf_counter()
    texts = model.scrub(trace["prompt_ids"], trace["system"], **options)
    cost = {"seconds": round(time.perf_counter() - begin, 4), "single": round(single, 4)}
    plain = [text.to_dict() | {"prompt": trace["prompt"]} for text in texts.values()]
    return {"texts": shared_steps(plain), "cost": cost}


def record(bundle: Path, model: Any, tell: Callable[[str], Any] = print) -> None:
    """Complete a bundle's recordings in place, and their entries in its manifest."""
    from mlpmem.loading.bundle_writer import replace_json  # it imports torch

    manifest = read_manifest(bundle)
    names = sorted(name for name in manifest["files"] if name.startswith("traces/"))
    for name in names:
        row = completed(model, read_json(bundle / name))
        replace_json(bundle, name, row)
        first = {s: t["steps"][0]["ms"] for s, t in row["traces"].items()}
        tell(f"{name}: first token in ms {first}, scrubbed {', '.join(row['scrubs']) or 'none'}")
    present = list_files(bundle)
    files = manifest["files"] | {name: present[name] for name in names}
    replace_json(bundle, MANIFEST, manifest | {"files": files}, indent=1)


def main(argv: list[str] | None = None) -> int:
    """Complete a bundle's recordings; returns the process's exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="the bundle's folder")
    folder = parser.parse_args(argv).bundle
    from mlpmem.loading.bundle import load_bundle

    try:
        bundle = load_bundle(folder)
        model = bundle.model()
        if bundle.searches:
            bundle.attach(model)
        record(folder, model)
    except MlpMemError as error:
        sys.stderr.write(f"mlpmem: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
