"""Made-up findings in the form in which every study yields them: nothing here was measured."""

import dataclasses

from mlpmem.results.questions import questions

WAYS = (
    ("lm", {"way": "before"}), ("memory", {"way": "before"}), ("knn", {"way": "before"}),
    ("knn", {"way": "inserted"}), ("memory", {"way": "taught", "replay": 0.0}),
    ("memory", {"way": "taught", "replay": 1.0}),
    *((s, {"way": "taught", "replay": r, "lr": lr})
      for s, lr in (("finetuned", 1e-3), ("lora", 4e-3)) for r in (0.0, 1.0)),
)  # fmt: skip
CELLS = ("new/seen", "new/test", "new/unseen", "B/test", "A2/test", "A1/test")
DOMAINS = ("encyclopedia", "stories", "medicine")


def charted(findings) -> list[int]:
    """Return how many points each chart of one study's own findings has."""
    (asked,) = questions({"findings": [dataclasses.asdict(found) for found in findings]})
    return [sum(len(one.points) for one in chart.series) for chart in asked.charts]


def rows() -> list[dict]:
    """Return findings of all studies, as results.json has them."""
    makers = (mixing, routing, imitation, worse, update, compute, domains, sensitivity, context,
              sizes, cost, ledger)  # fmt: skip
    return [row for make in makers for row in make()]


def row(study, system, split, metric, value, wide=0.1, **setting):
    """Return one finding; wide is its interval's half width, as a share of the value."""
    around = {} if wide is None else {"low": value * (1 - wide), "high": value * (1 + wide)}
    how = f"python -m train.studies {study} tiny"
    made = {"study": study, "system": system, "split": split, "metric": metric, "value": value}
    return made | {"how": how, "n": 100, "setting": setting, "low": None, "high": None} | around


def mixing():
    for split in ("all", "A2", "B"):
        for lmbda in (0.0, 0.5, 1.0):
            yield row("mixing", "memory", split, "perplexity", 3 + abs(lmbda - 0.6), lmbda=lmbda)
            yield row("mixing", "knn", split, "perplexity", 3 + abs(lmbda - 0.4), lmbda=lmbda)
        for k in (1, 8, 128):
            for t in (1.0, 20.0):
                setting = {"k": k, "temperature": t, "best_lmbda": 0.4}
                yield row("mixing", "knn", split, "perplexity", 4 - k / 128 + t / 40, **setting)


def routing():
    for cell in ("B/seen", "B/test", "B/test/invented", "A2/test"):
        yield row("routing", "lm", cell, "exact_match", 0.5)
        for lmbda, value in (("fixed", 0.6), ("auto", 0.7), ("oracle", 0.9)):
            yield row("routing", "memory", cell, "exact_match", value, lmbda=lmbda)
            yield row("routing", "memory", "B/text", "perplexity", 3 - value, lmbda=lmbda)


def imitation():
    for system, far in (("memory", 0.02), ("lm", 2.0)):
        yield row("imitation", system, "all", "kl", far)
        for split, edges in (("distance", (0.0, 4.5, 50.0)), ("frequency", (0.0, 300.0, 24491.0))):
            for low, high in zip(edges, edges[1:], strict=False):
                band = {"from": low, "to": high}
                yield row("imitation", system, split, "kl", far * (1 + high / 9), **band)
                yield row("imitation", system, split, "agreement", 0.8, **band)


def worse():
    for system in ("memory", "knn"):
        for split in ("all", "B", "name", "function word"):
            for metric, value in (("worse", 0.3), ("better", 0.2), ("nats_lost", 0.1),
                                  ("nats_won", 1.5), ("nats_change", -1.4)):  # fmt: skip
                if metric != "nats_change":
                    yield row("worse", system, split, metric, value, lmbda=0.5)


def update():
    yield row("update", "all", "new", "facts", 200.0, None)
    for i, (system, way) in enumerate(WAYS):
        if way["way"] != "before":
            yield row("update", system, "new", "seconds", 2.0 * 3**i / 50, None, **way)
        for cell in CELLS:
            value = min(1.0, i / 8) if cell.startswith("new") else 1 - i / 12
            yield row("update", system, cell, "exact_match", value * 0.9, 0.05, **way)
        yield row("update", system, "B", "perplexity", 3.0 + i, **way)


def compute():
    tuned = (("memory", "memory"), ("finetuned", "decoder fine-tuned on A1+B, 2 epochs"),
             ("finetuned", "decoder fine-tuned on A1+B, 7 epochs"))  # fmt: skip
    for i, (system, label) in enumerate(tuned):
        yield row("compute", system, "training", "flop", 1e14 * (i + 1), None, label=label)
        for j, cell in enumerate(("B/test", "B/unseen", "A1/test", "A2/test")):
            value = 0.9 - i / 10 - j / 20
            yield row("compute", system, cell, "exact_match", value, 0.03, label=label)


def domains():
    for i, text in enumerate(DOMAINS):
        yield row("domains", "lm", text, "perplexity", 30.0 + 20 * i)
        for j, of in enumerate(DOMAINS):
            for system, gain in (("memory", 0.8), ("knn", 0.7)):
                value = (30.0 + 20 * i) * (gain if i == j else 1.05)
                yield row("domains", system, text, "perplexity", value, of=of, lmbda=0.2)


def sensitivity():
    varied = [{"recipe": "own"}, {"alpha": 0.0}, {"alpha": 1.0}, {"blocks": 2}, {"head": "tied"},
              {"noise": 0.2}, {"depth": -2}]  # fmt: skip
    for i, change in enumerate(varied):
        setting = change | {"epochs": 2, "lmbda": 0.5}
        for cell in ("B/test", "A2/test"):
            yield row("sensitivity", "memory", cell, "exact_match", 0.9 - i / 40, 0.03, **setting)
        for group in ("B", "A2"):
            yield row("sensitivity", "memory", group, "perplexity", 3 + i / 5, **setting)


def context():
    for i, read in enumerate(("none", "16 and 64")):
        yield row("context", "memory", "real/test", "exact_match", 0.5 + i / 4, read=read)
        yield row("context", "memory", "general", "perplexity", 3.0 - i / 4, read=read)
    for weight in (0.0, 1.0):
        yield row("context", "knn", "real/test", "exact_match", 0.3 + weight / 4, weight=weight)


def sizes():
    for hidden in (64, 160):
        setting = {"hidden_size": hidden, "layers": 2, "lmbda": 0.4}
        for system, gain in (("lm", 1.0), ("knn", 0.8), ("memory", 0.85)):
            made = setting | {"parameters": 1000 * hidden * (1 + (system == "memory"))}
            yield row("sizes", system, "test", "perplexity", gain * 500 / hidden, **made)
    taught = {"hidden_size": 64, "layers": 2, "lmbda": 0.4, "parameters": 128_000}
    yield row("sizes", "memory", "test", "perplexity", 6.5, teacher="160x2", **taught)


def cost():
    kinds = {"exact-torch-fp16": 60e3, "flat-fp32": 40e3, "flat-fp16": 90e3, "ivf-sq8": 2e6}
    for keys in (10_000, 100_000, 1_000_000):
        made = {"simulated": True} if keys > 500_000 else {}
        yield row("cost", "memory", "search", "ms_per_query", 1.0, keys=keys, **made)
        for kind, equal in kinds.items():
            yield row("cost", kind, "search", "ms_per_query", keys / equal, keys=keys, **made)
    for kind, equal in list(kinds.items())[:3]:
        yield row("cost", kind, "search", "keys_where_the_memory_is_as_fast", equal, None)
    yield row("cost", "memory", "decode", "ms_per_token", 5.0)
    for system in ("lm", "memory", "rag", "mine"):
        for metric, value in (("ms_to_first_token", 9.0), ("ms_per_token", 5.0)):
            yield row("cost", system, "systems", metric, value)
        yield row("cost", system, "systems", "in_memory", 2e7, None)


def ledger():
    for i, stage in enumerate(("corpus", "decoder", "datastore", "targets", "memory")):
        flop = 0.0 if i == 0 else 1e12 * 5**i
        took = {"seconds": 10.0 * 4**i, "peak_memory": 5e8, "bytes": 1e7 * 2**i, "flop": flop}
        for metric, value in took.items():
            yield row("ledger", "memory", stage, metric, value, None)
    for groups in ("B", "A1+B"):
        setting = {"groups": groups, "lr": 0.001, "epochs": 2}
        for metric, value in (("seconds", 300.0), ("tokens", 1e6), ("flop", 3e13)):
            yield row("ledger", "finetuned", "decoder", metric, value, None, **setting)
