"""The charts of what answering, training and size cost, made of findings, in plain values."""

from collections.abc import Iterator
from dataclasses import replace

from mlpmem.results.charts import TUNED, Chart, Point, point, series
from mlpmem.results.findings import Found
from mlpmem.results.study_charts import NAMES, SOURCES, Rows, colour_of, is_number, over

KINDS = {"exact-torch-fp16": "exact, torch", "flat-fp32": "exact, faiss float32",
         "flat-fp16": "exact, faiss float16", "ivf-sq8": "inverted file, 8 bit"}  # fmt: skip
ALONE = NAMES | {  # in a bundle a column of its own is LoRA
    "finetuned": "decoder with LoRA",
    "mixed": "memory + datastore", "rag": "retrieval", "rag_memory": "retrieval, memory",
    "auto": "memory, λ by token", "auto_knn": "datastore, λ by token",
    "auto_mixed": "memory + datastore, λ by token",
}  # fmt: skip
EQUAL = "keys_where_the_memory_is_as_fast"


def cost(rows: Rows) -> Iterator[Chart]:
    """Yield milliseconds of a search over the number of keys, the memory's beside it.

    Then what every system takes alone, a row a system.
    """
    here = [row for row in rows if row.split == "search"]
    timed = [row for row in here if row.metric == "ms_per_query"]
    memory = over(timed, "keys", "memory")
    lines = [series("memory", "memory", memory)]
    kinds = dict.fromkeys(row.system for row in timed if row.system != "memory")
    lines += [series(KINDS.get(k, k), "knn", over(timed, "keys", k), False) for k in kinds]
    level = sorted(p.value for p in memory)[len(memory) // 2] if memory else None
    met = [Point(row.value, level) for row in here
           if row.metric == EQUAL and level]  # fmt: skip
    lines.append(series("as fast as the memory", TUNED, met, False))
    yield Chart("lines", "Time of one query over the number of keys", "keys in the datastore",
                tuple(lines), "ms", "xy", "{:.3g}")  # fmt: skip
    level_at = (point(KINDS.get(row.system, row.system), row, source="knn") for row in here
                if row.metric == EQUAL)  # fmt: skip
    yield Chart("dots", "A search costs what the memory does at", "keys",
                (series("keys", "knn", level_at),), log="x", form="{:,.0f}")  # fmt: skip
    yield from _alone([row for row in rows if row.split == "systems"])


def _alone(rows: Rows) -> Iterator[Chart]:
    """Yield time and bytes of every system."""
    for metrics, title, scale, unit, form in (
        ({"ms_to_first_token": "first token", "ms_per_token": "a token after it"},
         "Time of an answer, ms", 1.0, "ms", "{:.1f}"),
        ({"in_memory": "in memory"}, "Held in memory", 1e-6, "MB", "{:,.0f}"),
    ):  # fmt: skip
        marks = []
        for metric, name in metrics.items():
            points = (point(ALONE.get(r.system, r.system), r, scale, colour_of(r.system))
                      for r in rows if r.metric == metric)  # fmt: skip
            marks.append(series(name, TUNED, points, not marks))
        yield Chart("dots", title, unit, tuple(marks), log="x", form=form)


def ledger(rows: Rows) -> Iterator[Chart]:
    """Yield seconds, FLOP and bytes, a row a stage; fine-tuned decoders beside them."""
    for metrics, title, scale, unit, form in (
        (("seconds",), "Time", 1.0, "seconds", "{:,.0f}"),
        (("flop",), "Computation", 1e-12, "TFLOP", "{:,.1f}"),
        (("peak_memory", "bytes"), "Memory and disk, MB", 1e-6, "MB", "{:,.0f}"),
    ):
        marks = []
        for metric in metrics:
            points = (point(_stage(r), r, scale, colour_of(r.system)) for r in rows
                      if r.metric == metric and r.value > 0)  # fmt: skip
            name = {"peak_memory": "memory at most", "bytes": "left on disk"}.get(metric, unit)
            marks.append(series(name, TUNED, points, not marks))
        yield Chart("dots", title, unit, tuple(marks), log="x", form=form)


def sizes(rows: Rows) -> Iterator[Chart]:
    """Yield what every decoder does alone, with its datastore, with its memory, with another's.

    Once over the parameters that are computed with, once by decoder.
    """
    for metric, split, scale, said, form in (
        ("perplexity", "test", 1.0, "perplexity", "{:.2f}"),
        ("perplexity", "B", 1.0, "perplexity", "{:.2f}"),
        ("exact_match", "B/test", 100.0, "exact match, %", "{:.0f}"),
    ):
        here = [row for row in rows if (row.metric, row.split) == (metric, split)]
        parts = [(NAMES[s], s, [r for r in here if "teacher" not in r.setting]) for s in SOURCES]
        taught = [row for row in here if "teacher" in row.setting]
        parts.append(("memory of another teacher", "memory", taught))
        lines, marks = [], []
        for name, system, found in parts:
            plain = found is not taught
            colour = system if plain else TUNED
            points = [
                replace(p, at=float(f"{p.at:.2g}"))  # 490k, not 492.384k
                for p in over(found, "parameters", system, scale)
            ]
            lines.append(
                series(f"with {name}" if system != "lm" else "alone", colour, points, plain)
            )
            points = [point(_shape(r), r, scale) for r in found if r.system == system]
            marks.append(series(name, colour, points, plain))
        title = f"{said[0].upper()}{said[1:]}"
        across = "parameters computed with"
        yield Chart("lines", f"{title} over size", across, tuple(lines), said, "x", form)
        yield Chart("dots", title, said, tuple(marks), form=form)


def _shape(row: Found) -> str:
    """Return what a decoder is called by its size: "64 wide, 2 layers"."""
    wide, layers = (row.setting.get(key) for key in ("hidden_size", "layers"))
    return f"{wide:g} wide, {layers:g} layers" if is_number(wide) and is_number(layers) else ""


def _stage(row: Found) -> str:
    """Return a stage of the ledger, or which decoder was fine-tuned."""
    if row.system not in ("finetuned", "lora"):
        return row.split
    said, how = row.setting, "fine-tuned" if row.system == "finetuned" else "LoRA"
    lr, epochs = (f"{said[k]:g}" if is_number(said.get(k)) else "" for k in ("lr", "epochs"))
    return f"{how} on {said.get('groups', '')}, lr {lr}, epochs {epochs}"
