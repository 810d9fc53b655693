"""The charts of every study, made of its findings: a function a study, in plain values.

A study that was measured in part has the charts of that part. cost_charts.py has those of what
answering, training and size cost.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from mlpmem.results.charts import TUNED, Chart, Point, point, series
from mlpmem.results.findings import Found

NAMES = {"lm": "decoder", "memory": "memory", "knn": "datastore", "finetuned": "decoder fine-tuned",
         "lora": "decoder with LoRA"}  # fmt: skip
SOURCES = ("memory", "knn", "lm")
WORDINGS = {"seen": "seen", "test": "new", "unseen": "unseen form", "statement_test": "statement",
            "text": "text"}  # fmt: skip
VARIED = ("alpha", "blocks", "head", "start", "noise", "depth", "targets")
Rows = Sequence[Found]


def mixing(rows: Rows) -> Iterator[Chart]:
    """Yield perplexity over lambda, and over k, of each group of text."""
    for split in _groups(rows):
        here = [row for row in rows if row.split == split and row.metric == "perplexity"]
        swept = {s: over(here, "lmbda", s) for s in ("memory", "knn")}
        lines = [series(NAMES[s], s, points, s == "memory") for s, points in swept.items()]
        title = f"Perplexity over λ, {_said(split)}"
        yield Chart("lines", title, "λ", tuple(lines), "perplexity", "y")
        best: dict[float, Found] = {}
        for row in here:
            k = row.setting.get("k")
            if is_number(k) and (k not in best or row.value < best[k].value):
                best[k] = row
        found = [series(NAMES["knn"], "knn", (point(k, best[k]) for k in sorted(best)), False)]
        if best and swept["memory"]:
            level = min(p.value for p in swept["memory"])
            ends = (Point(k, level) for k in (min(best), max(best)))
            found.append(series("memory, at its best λ", "memory", ends))
        title = f"Perplexity over neighbours, {_said(split)}"
        yield Chart("lines", title, "k, neighbours", tuple(found), "perplexity", "x")


def imitation(rows: Rows) -> Iterator[Chart]:
    """Yield KL and agreement, by distance of the nearest neighbour and by frequency."""
    across = {"distance": "squared distance of the nearest neighbour",
              "frequency": "times the true token stands in the datastore"}  # fmt: skip
    for split, axis in across.items():
        for metric, up, scale, log in (
            ("kl", "KL, nats", 1.0, "y"), ("agreement", "same first token, %", 100.0, ""),
        ):  # fmt: skip
            lines = []
            for system in ("memory", "lm"):
                here = [r for r in _pick(rows, system, split, metric) if _is_band(r)]
                here.sort(key=lambda row: row.setting["from"])
                points = (point(_band(row), row, scale) for row in here)
                lines.append(series(NAMES[system], system, points, system == "memory"))
            title = f"{up.split(',')[0]}, by {split}"
            form = "{:.3f}" if metric == "kl" else "{:.0f}"
            title = title[0].upper() + title[1:]
            yield Chart("lines", title, axis, tuple(lines), up, log, form)


def routing(rows: Rows) -> Iterator[Chart]:
    """Yield exact match and perplexity under a fixed lambda, the router's, and the oracle's."""
    for system in [s for s in dict.fromkeys(row.system for row in rows) if s != "lm"]:
        for metric, scale, form in (
            ("exact_match", 100.0, "{:.1f}"),
            ("perplexity", 1.0, "{:.2f}"),
        ):
            marks = []
            for mode, name in (("fixed", "one λ"), ("auto", "auto"), ("oracle", "oracle")):
                here = [r for r in rows if (r.system, r.metric) == (system, metric)]
                points = _cells([r for r in here if r.setting.get("lmbda") == mode], scale)
                marks.append(series(name, colour_of(system), points, mode == "fixed"))
            said = "Exact match, %" if metric == "exact_match" else "Perplexity"
            name = NAMES.get(system, system)
            yield Chart("dots", f"{said}, decoder + {name}", said.lower(), tuple(marks), form=form)


def worse(rows: Rows) -> Iterator[Chart]:
    """Yield what loses and what wins, as shares of tokens and in nats, by group and kind."""
    for left, right, scale, said, form in (
        ("worse", "better", 100.0, "% of tokens", "{:.0f}"),
        ("nats_lost", "nats_won", 1.0, "nats a token", "{:.2f}"),
    ):
        bars = []
        for system in ("memory", "knn"):
            lost = [_turned(point(_said(r.split), r, scale)) for r in rows
                    if (r.system, r.metric) == (system, left)]  # fmt: skip
            won = [point(_said(r.split), r, scale) for r in rows
                   if (r.system, r.metric) == (system, right)]  # fmt: skip
            bars.append(series(NAMES[system], system, [*lost, *won]))
        title = "How many tokens" if left == "worse" else "By how much"
        yield Chart("sides", title, f"← worse, {said}, better →", tuple(bars), form=form)


def update(rows: Rows) -> Iterator[Chart]:
    """Yield seconds, new facts recalled and old ones kept, a row a way of teaching them."""
    ways = [row for row in rows if row.setting.get("way")]
    seconds = [point(_way(r), r, source=colour_of(r.system)) for r in ways if r.metric == "seconds"]
    yield Chart("dots", "Learned in", "seconds", (series("seconds", TUNED, seconds),),
                log="x", form="{:,.0f}")  # fmt: skip
    for title, group in (("New facts recalled", ("new",)), ("Old facts kept", ("B", "A2", "A1"))):
        marks = []
        for cell in dict.fromkeys(r.split for r in ways if r.metric == "exact_match"):
            part, _, wording = cell.partition("/")
            wanted = ("seen", "test", "unseen") if part == "new" else ("test",)
            if part in group and wording in wanted:
                points = [point(_way(r), r, 100.0, colour_of(r.system)) for r in ways
                          if (r.split, r.metric) == (cell, "exact_match")]  # fmt: skip
                name = WORDINGS[wording] if part == "new" else part
                marks.append(series(name, TUNED, points, not marks))
        yield Chart("dots", title, "exact match, %", tuple(marks), form="{:.0f}")


def compute(rows: Rows) -> Iterator[Chart]:
    """Yield FLOP, facts learned and facts kept, a row a memory or a tuned decoder."""
    told = [row for row in rows if isinstance(row.setting.get("label"), str)]
    flop = [point(r.setting["label"], r, 1e-12, colour_of(r.system)) for r in told
            if r.metric == "flop"]  # fmt: skip
    yield Chart("dots", "Training computes", "TFLOP", (series("TFLOP", TUNED, flop),),
                log="x", form="{:,.0f}")  # fmt: skip
    for title, cells in (("Facts learned", ("B/test", "B/unseen")),
                         ("Facts kept", ("A2/test", "A1/test"))):  # fmt: skip
        marks = [
            series(_said(cell), TUNED, (point(r.setting["label"], r, 100.0, colour_of(r.system))
                   for r in told if (r.split, r.metric) == (cell, "exact_match")), not i)
            for i, cell in enumerate(cells)
        ]  # fmt: skip
        yield Chart("dots", title, "exact match, %", tuple(marks), form="{:.0f}")


def domains(rows: Rows) -> Iterator[Chart]:
    """Yield a matrix of perplexities a system: whose memory, on which domain's text."""
    alone = [point(row.split, row) for row in rows if row.system == "lm"]
    for system in ("memory", "knn"):
        here = [
            row for row in rows if row.system == system and isinstance(row.setting.get("of"), str)
        ]
        lines = [series("decoder only", "lm", alone)] if here else []
        for of in dict.fromkeys(row.setting["of"] for row in here):
            cells = (point(row.split, row) for row in here if row.setting["of"] == of)
            lines.append(series(f"{NAMES[system]} of {of}", system, cells))
        title = f"Decoder + {NAMES[system]}"
        yield Chart("matrix", title, "text", tuple(lines), "perplexity")


def sensitivity(rows: Rows) -> Iterator[Chart]:
    """Yield exact match and perplexity, a row a memory that was trained with one thing changed."""
    shown = ("B/test", "B", "A2/test", "A2", "test")
    colours = {cell: "memory" if cell[0] == "B" else "lm" for cell in shown}
    yield from _trained(rows, _changed, colours)


def context(rows: Rows) -> Iterator[Chart]:
    """Yield exact match and perplexity, a row a way of reading the words so far."""
    cells = dict.fromkeys(row.split for row in rows if not row.split.endswith("dev"))
    yield from _trained(rows, _read, dict.fromkeys(cells, TUNED))


def _trained(rows: Rows, name: Callable[[Found], str], colours: Mapping) -> Iterator[Chart]:
    """Yield exact match and perplexity, a row each name; colours by cell, in their order."""
    for metric, scale, said, form in (
        ("exact_match", 100.0, "exact match, %", "{:.0f}"),
        ("perplexity", 1.0, "perplexity", "{:.2f}"),
    ):  # fmt: skip
        here = [row for row in rows if row.metric == metric and name(row)]
        cells = [cell for cell in colours if any(row.split == cell for row in here)]
        marks = []
        for cell in cells:
            own = colours[cell] == TUNED  # then points have their systems' colours
            points = [point(name(r), r, scale, colour_of(r.system) if own else "") for r in here
                      if r.split == cell]  # fmt: skip
            marks.append(series(_said(cell), colours[cell], points, not marks))
        yield Chart("dots", said[0].upper() + said[1:], said, tuple(marks), form=form)


def _read(row: Found) -> str:
    """Return how the words so far were read, "" where nothing is told."""
    if isinstance(row.setting.get("read"), str):
        return f"memory, {row.setting['read']}"
    weight = row.setting.get("weight")
    return f"datastore, weight {weight:g}" if is_number(weight) else ""


def _pick(rows: Rows, system: str, split: str, metric: str) -> list[Found]:
    """Return the findings of one system, split and metric."""
    return [r for r in rows if (r.system, r.split, r.metric) == (system, split, metric)]


def _groups(rows: Rows) -> list[str]:
    """Return the groups of text, B first; "all" only where there are no others."""
    there = list(dict.fromkeys(row.split for row in rows))
    known = [split for split in ("B", "A2", "A1") if split in there]
    return known or there[:1]


def over(rows: Rows, varied: str, system: str, scale: float = 1.0) -> list[Point]:
    """Return a system's points over what was varied, in order."""
    here = [r for r in rows if r.system == system and is_number(r.setting.get(varied))]
    here.sort(key=lambda row: row.setting[varied])
    return [point(row.setting[varied], row, scale) for row in here]


def _cells(rows: Rows, scale: float) -> list[Point]:
    """Return points of cells as "B/test", in the order of groups and wordings."""
    order = [f"{g}/{w}" for g in ("B", "A2", "A1", "text") for w in (*WORDINGS, "test")]
    here = {row.split: row for row in rows}
    return [point(_said(c), here[c], scale) for c in dict.fromkeys(order) if c in here]


def _said(split: str) -> str:
    """Return a split as a person says it: "B new", "all text"."""
    group, _, wording = split.partition("/")
    return f"{group} {WORDINGS.get(wording, wording)}".strip()


def is_number(value: object) -> bool:
    """Return whether a setting is a number."""
    return isinstance(value, float)


def _is_band(row: Found) -> bool:
    return is_number(row.setting.get("from")) and is_number(row.setting.get("to"))


def _band(row: Found) -> str:
    """Return "4.1 to 14"."""
    return " to ".join(_short(row.setting[end]) for end in ("from", "to"))


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}".removesuffix(".0")


def _turned(p: Point) -> Point:
    """Return a point on the other side of 0."""
    low, high = (None, None) if p.low is None else (-p.high, -p.low)
    return Point(p.at, -p.value, low, high, p.source)


def colour_of(system: str) -> str:
    """Return the source whose colour a system has."""
    return system if system in SOURCES else TUNED


def _way(row: Found) -> str:
    """Return how a system came to know: "memory, taught with replay"."""
    way = str(row.setting["way"])
    again = " with replay" if row.setting.get("replay") else ""
    return f"{NAMES.get(row.system, row.system)}, {way}{again}"


def _changed(row: Found) -> str:
    """Return what was changed of a memory: "alpha 0.2"; "" where nothing of it is told."""
    if "recipe" in row.setting:
        return "as the recipe has it"
    name = next((name for name in VARIED if name in row.setting), "")
    value = row.setting.get(name)
    return f"{name} {value:g}" if is_number(value) else f"{name} {value}" if name else ""
