"""A reviewer's question answered in one sentence, made of the findings that its figures draw.

Each function returns "" where a number that it needs was not measured. A sentence says what the
numbers say, whichever way they point.
"""

from collections.abc import Callable, Sequence
from statistics import mean

from mlpmem.results.cost_charts import EQUAL
from mlpmem.results.findings import Found

Rows = Sequence[Found]
TEXTS = {"B": "text on new facts", "A2": "text on known facts", "A1": "text on facts of both"}
CLOSE = 0.01  # share by which two perplexities count as equal
VARIED = {"blocks": "the number of blocks", "head": "its head", "start": "where it starts",
          "depth": "the layer it reads", "targets": "the targets"}  # fmt: skip
HALF = 0.005  # shares that differ by less are shown as equal


def mixing(rows: Rows) -> str:
    """Return whether memory or datastore reaches the lower perplexity, each at its best."""
    split = _first(rows, "B", "all")
    memory, knn = (_least(rows, system, split) for system in ("memory", "knn"))
    if memory is None or knn is None:
        return ""
    numbers = f"perplexity {memory:.2f} with the memory, {knn:.2f} with the datastore"
    on = TEXTS.get(split, "held-out text")
    if abs(memory - knn) <= CLOSE * knn:
        return f"Memory and datastore are equally good on {on}: {numbers}"
    better, other = ("memory", "datastore") if memory < knn else ("datastore", "memory")
    return f"The {better} is better than the {other} on {on}: {numbers}"


def routing(rows: Rows) -> str:
    """Return what a lambda for every token adds to one for all."""
    found = {}
    for mode in ("fixed", "auto"):
        here = [row for row in rows if row.setting.get("lmbda") == mode]
        cells = [_value(here, "memory", f"{group}/test") for group in ("B", "A2")]
        found[mode] = [share for share in cells if share is not None]
    fixed, auto = found["fixed"], found["auto"]
    if not fixed or len(fixed) != len(auto):
        return ""
    gain = mean(auto) - mean(fixed)
    said = "helps" if gain >= HALF else "does harm" if gain <= -HALF else "makes no difference"
    names = ("of new facts", "of known ones")
    each = " and ".join(f"{_percent(x)} {name}" for x, name in zip(auto, names, strict=False))
    one = " and ".join(_percent(share) for share in fixed)
    return f"A λ for every token {said}: the memory has {each} right, with one λ for all {one}"


def imitation(rows: Rows) -> str:
    """Return how near the memory is to the datastore, with the decoder as a yardstick."""
    near, far = (_value(rows, system, "all", "agreement") for system in ("memory", "lm"))
    if near is not None and far is not None:
        said = "mostly" if near > 0.75 else "partly" if near > far + HALF else "hardly"
        return (
            f"The memory is {said} faithful: its likeliest token is the datastore's for "
            f"{_percent(near)} of tokens, the decoder's for {_percent(far)}"
        )
    near, far = (_value(rows, system, "all", "kl") for system in ("memory", "lm"))
    if near is None or far is None:
        return ""
    return f"The memory is {near:.2f} nats from the datastore (KL), and the decoder {far:.2f}"


def worse(rows: Rows) -> str:
    """Return how many tokens lose and win with the memory, and by how much."""
    split = _first(rows, "all", "B")
    names = ("worse", "better", "nats_lost", "nats_won")
    values = [_value(rows, "memory", split, name) for name in names]
    if None in values:
        return ""
    lost, won, nats_lost, nats_won = values
    said = "wins more than it loses" if nats_won > nats_lost else "loses more than it wins"
    return (
        f"The memory {said}: {_percent(lost)} of tokens get worse, {_percent(won)} better; "
        f"{nats_lost:.2f} nats are lost and {nats_won:.2f} won per token"
    )


def update(rows: Rows) -> str:
    """Return how datastore and memory come to know new facts, and what that costs in old ones."""
    said = []
    for system, way, verb in (("knn", "inserted", "the datastore has new facts"),
                              ("memory", "taught", "the memory")):  # fmt: skip
        ways = [row for row in rows if row.system == system and row.setting.get("way") == way]
        replay = max(map(_replay, ways), default=0.0)
        here = [row for row in ways if _replay(row) == replay]
        seconds = _value(here, system, "new", "seconds")
        cells = [_value(here, system, cell) for cell in ("new/test", "B/test")]
        if seconds is None or None in cells:
            return ""
        again = " with replay" if replay else ""
        said.append(
            f"{verb}{again} in {seconds:,.0f} s, with {_percent(cells[0])} right and "
            f"{_percent(cells[1])} of the old ones"
        )
    text = "; ".join(said)
    return text[0].upper() + text[1:]


def compute(rows: Rows) -> str:
    """Return what fine-tuning learns and forgets at its best, against the memory."""
    pairs: dict[str, dict[str, tuple[float, float]]] = {"memory": {}, "tuned": {}}
    labels = [row.setting.get("label") for row in rows]
    for label in dict.fromkeys(label for label in labels if isinstance(label, str)):
        here = [row for row in rows if row.setting.get("label") == label]
        kind = {"memory": "memory", "finetuned": "tuned", "lora": "tuned"}.get(here[0].system)
        new, old = (_value(here, here[0].system, cell) for cell in ("B/test", "A2/test"))
        if kind and new is not None and old is not None:
            pairs[kind][label] = new, old
    if not all(pairs.values()):
        return ""
    ours, theirs = (max(pairs[kind].values(), key=sum) for kind in ("memory", "tuned"))
    said = "learns and forgets" if theirs[1] < ours[1] - HALF else "does as well"
    return (
        f"Fine-tuning {said}: at its best it has {_percent(theirs[0])} of new facts and keeps "
        f"{_percent(theirs[1])} of the old; the memory has {_percent(ours[0])} and "
        f"{_percent(ours[1])}"
    )


def domains(rows: Rows) -> str:
    """Return what a memory changes on its own domain's text, and on others'."""
    alone = {row.split: row.value for row in rows if row.system == "lm" and row.value > 0}
    own, other = [], []
    for row in rows:
        if row.system == "memory" and row.split in alone and isinstance(row.setting.get("of"), str):
            ratio = row.value / alone[row.split] - 1
            (own if row.setting["of"] == row.split else other).append(ratio)
    if not own or not other:
        return ""
    said = "may do harm" if max(other) > CLOSE else "does no harm"
    return (
        f"On another domain's text a memory {said}: it changes perplexity by "
        f"{_change(min(own))} to {_change(max(own))} on its own, by {_change(min(other))} to "
        f"{_change(max(other))} on others"
    )


def sensitivity(rows: Rows) -> str:
    """Return which single change costs a memory most."""
    cell, metric, least = "B/test", "exact_match", True
    if not any((row.split, row.metric) == (cell, metric) for row in rows):
        cell, metric, least = _first(rows, "B", "test"), "perplexity", False
    here = [row for row in rows if (row.split, row.metric) == (cell, metric)]
    own = next((row.value for row in here if "recipe" in row.setting), None)
    others = {name: row.value for row in here if (name := _changed(row))}
    if own is None or not others:
        return ""
    name = (min if least else max)(others, key=others.__getitem__)
    if least:
        return (
            f"The memory hangs most on {name}: {_percent(others[name])} of new facts right, and "
            f"{_percent(own)} as the recipe has it"
        )
    shown = f"perplexity {others[name]:.2f}, and {own:.2f} as the recipe has it"
    return f"The memory hangs most on {name}: {shown}"


def context(rows: Rows) -> str:
    """Return the mean exact match of a memory that reads no words, and of the best that does."""
    shares: dict[str, list[float]] = {}
    for row in rows:
        if row.metric == "exact_match" and isinstance(row.setting.get("read"), str):
            shares.setdefault(row.setting["read"], []).append(row.value)
    means = {read: sum(values) / len(values) for read, values in shares.items()}
    alone = means.pop("none", None)
    if alone is None or not means:
        return ""
    best = max(means, key=means.__getitem__)
    return (
        f"On average over all cells a memory that reads no words has {_percent(alone)} right; the "
        f"best that reads them ({best}) has {_percent(means[best])}"
    )


def sizes(rows: Rows) -> str:
    """Return how the largest decoder alone compares with the smallest and its memory."""
    for split, metric in (("B/test", "exact_match"), ("B", "perplexity"), ("test", "perplexity")):
        here = [row for row in rows if (row.split, row.metric) == (split, metric)]
        here = [row for row in here if isinstance(row.setting.get("hidden_size"), float)]
        alone = [row for row in here if row.system == "lm"]
        taught = [r for r in here if r.system == "memory" and "teacher" not in r.setting]
        if len(alone) < 2 or not taught:
            continue
        wide = lambda row: row.setting["hidden_size"]  # noqa: E731
        large, small = max(alone, key=wide), min(taught, key=wide)
        share = metric == "exact_match"
        better = large.value > small.value if share else large.value < small.value
        one, other = ((_percent(r.value) if share else f"{r.value:.2f}") for r in (large, small))
        what = "new facts right" if share else "perplexity"
        return (
            f"A larger decoder {'does more' if better else 'does not do instead'}: alone, the "
            f"largest has {what} {one}; the smallest with its memory {other}"
        )
    return ""


def cost(rows: Rows) -> str:
    """Return from how many keys a search takes as long as the memory."""
    keys = sorted(row.value for row in rows if row.metric == EQUAL)
    if not keys:
        return ""
    if len(keys) == 1:
        return f"The memory is faster from {_round(keys[0])} keys on"
    keys_on = f"{_round(keys[0])} to {_round(keys[-1])} keys on"
    return f"The memory is faster from {keys_on}, by the kind of search"


def ledger(rows: Rows) -> str:
    """Return how long the stages take, and the memory's own training among them."""
    took = {r.split: r.value for r in rows if (r.system, r.metric) == ("memory", "seconds")}
    if "memory" not in took or len(took) < 2:
        return ""
    return (
        f"All stages take {_time(sum(took.values()))}, and {_time(took['memory'])} of them are the "
        "memory's own training"
    )


ANSWERS: dict[str, Callable[[Rows], str]] = {
    "mixing": mixing, "routing": routing, "imitation": imitation, "worse": worse, "update": update,
    "compute": compute, "domains": domains, "sensitivity": sensitivity, "context": context,
    "sizes": sizes, "cost": cost, "ledger": ledger,
}  # fmt: skip


def _replay(row: Found) -> float:
    """Return how much of the old text was among the new, 0 where nothing is told."""
    replay = row.setting.get("replay")
    return replay if isinstance(replay, float) else 0.0


def _value(rows: Rows, system: str, split: str, metric: str = "exact_match") -> float | None:
    """Return the one value of a system, None if it was not measured."""
    wanted = system, split, metric
    return next((r.value for r in rows if (r.system, r.split, r.metric) == wanted), None)


def _least(rows: Rows, system: str, split: str) -> float | None:
    """Return a system's lowest perplexity over all that was varied."""
    return min((row.value for row in rows if (row.system, row.split, row.metric)
                == (system, split, "perplexity")), default=None)  # fmt: skip


def _first(rows: Rows, *splits: str) -> str:
    """Return the first of these splits that was measured, else the first row's."""
    there = [row.split for row in rows]
    return next((split for split in splits if split in there), there[0] if there else "")


def _changed(row: Found) -> str:
    """Return the one thing that was changed of a memory, "" for none."""
    hidden = ("epochs", "lmbda", "recipe")
    name, value = next(((k, v) for k, v in row.setting.items() if k not in hidden), ("", ""))
    shown = f"{value:g}" if isinstance(value, float) else value
    return f"{VARIED.get(name, name)} ({shown})" if name else ""


def _percent(share: float) -> str:
    """Return "98 %"; what is nearly all has a decimal, so that it is not shown as all."""
    return f"{100 * share:.{int(0.99 < share < 1)}f}\u00a0%"


def _change(ratio: float) -> str:
    text = f"{100 * ratio:+,.0f}\u00a0%".replace("-", "\u2212")
    return text if round(100 * ratio) else "0\u00a0%"


def _round(number: float) -> str:
    return f"{float(f'{number:.2g}'):,.0f}"


def _time(seconds: float) -> str:
    """Return "52 minutes", or seconds below two minutes."""
    return f"{seconds / 60:,.0f} minutes" if seconds >= 120 else f"{seconds:,.0f} s"
