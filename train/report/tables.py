"""The tables of a bundle's results.json: what systems answer, what it costs, how it was made."""

from mlpmem.engine.trace import AUTO
from train.measure.atlas import shares
from train.report.sentences import markdown


def tables(results: dict) -> str:
    """Return all tables in Markdown."""
    return "\n".join(parts(results).values())


def parts(results: dict) -> dict[str, str]:
    """Return the tables of a results.json by the block they fill."""
    return {name: make(results) for name, make in MAKERS.items()}


def measured_tables(results: dict) -> list[str]:
    """Return the tables for which a results.json has the figures, of any kind of corpus."""
    found = []
    for makers in ((_systems_table, _cells_table), (_costs_table,), (_stages_table,)):
        for make in makers:
            try:
                found.append(make(results))
            except (LookupError, TypeError, ValueError, AttributeError):
                continue
            break
    return found


def _systems_table(results: dict) -> str:
    """Return what each system answers, or its perplexity of a text."""
    return _text_table(results) if "share_of_gain" in results else _atlas_table(results)


def _atlas_table(results: dict) -> str:
    """Return what each system answers."""
    rows = [_flat(system) for system in results["systems"]] + results["forgetting"]
    head = ["exact match, %", "lambda", "B seen", "B new", "B unseen form", "A2 new",
            "A2 unseen form", "A1 new", "ppl B", "ppl A2", "seconds"]  # fmt: skip
    return markdown(head, [_row(row) for row in rows])


def _text_table(results: dict) -> str:
    """Return each system's perplexity of a text and its share of the gain of kNN."""
    ppl = {system["name"]: system["ppl"]["text"] for system in results["systems"]}
    rows = []
    for system in results["systems"]:
        gain = ppl["lm"] - ppl["knn"]
        share = f"{100 * (ppl['lm'] - ppl[system['name']]) / gain:.0f}%" if gain > 0 else ""
        rows.append(
            [system["label"], "" if system["lmbda"] is None else f"{system['lmbda']:g}",
             f"{ppl[system['name']]:.2f}", "" if system["name"] == "lm" else share,
             f"{system['bytes'] / 1e6:,.1f} MB", f"{system['train_seconds']:,.0f}"]
        )  # fmt: skip
    return markdown(
        ["test split", "lambda", "perplexity", "of kNN's gain", "size", "seconds"], rows
    )


def _cells_table(results: dict) -> str:
    """Return what each system answers in the cells that were asked, and its perplexities."""
    rows = [_flat(system) for system in results["systems"]]
    cells = [cell for cell in rows[0] if cell in shares(results["systems"][0]["accuracy"])]
    texts = [name for name in rows[0] if name.startswith("ppl_")]
    lines = [
        [row["label"], _lmbda(row), *(f"{100 * row[cell]:.1f}" for cell in cells),
         *(f"{row[text]:.2f}" for text in texts)]
        for row in rows
    ]  # fmt: skip
    names = [name.replace("_", " ") for name in (*cells, *texts)]
    return markdown(["right, %, and perplexity (ppl)", "lambda", *names], lines)


def _flat(system: dict) -> dict:
    """Return a system's entry with the keys of a fine-tuned decoder's row."""
    ppl = {f"ppl_{group}": value for group, value in system["ppl"].items()}
    return system | shares(system["accuracy"]) | ppl | {"seconds": system["train_seconds"]}


def _row(row: dict) -> list[str]:
    """Return one system's line of the main table."""
    cells = ("B_seen", "B_test", "B_unseen", "A2_test", "A2_unseen", "A1_test")
    right = [f"{100 * row[cell]:.1f}" for cell in cells]
    ppl = [f"{row[group]:.2f}" for group in ("ppl_B", "ppl_A2")]
    return [row["label"], _lmbda(row), *right, *ppl, f"{row['seconds']:,.0f}"]


def _lmbda(row: dict) -> str:
    """Return a system's lambda as text, "" for one that has none."""
    lmbda = row.get("lmbda")
    return "" if lmbda is None else lmbda if lmbda == AUTO else f"{lmbda:g}"


def _costs_table(results: dict) -> str:
    """Return the cost of one generated token, of memory in use, and of the start."""
    cost, sources = results["cost"], ("decoder", "memory", "datastore")
    times = (cost["decoder_ms"], cost["memory_ms"], cost["search_ms"])
    sizes = [f"{cost[f'{part}_bytes'] / 1e6:,.1f} MB" for part in sources]
    build = ["", "", f"{cost['build_seconds']:.0f} s for {cost['keys']:,} keys"]
    rows = [
        ["per token", *(f"{ms:.1f} ms" for ms in times)],
        ["in memory", *sizes],
        ["before the first answer", *build],
    ]
    return markdown(["cost", *sources], rows)


def _stages_table(results: dict) -> str:
    """Return the time and memory of each stage that made the bundle."""
    rows = [
        [name, f"{s['seconds']:,.0f}", f"{s['peak_memory_bytes'] / 2**20:,.0f} MiB"]
        for name, s in results["stages"].items()
    ]
    return markdown(["stage", "seconds", "peak memory"], rows)


MAKERS = {"results": _systems_table, "costs": _costs_table, "stages": _stages_table}
