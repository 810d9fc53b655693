"""What a text corpus measures: the perplexity of its test split by every source.

Neighbours, temperature and both lambdas are chosen on the validation split; the test split only
measures. Windows are as long as the passages that were keyed, or the keys would lack what the
queries know.
"""

from dataclasses import asdict, replace
from itertools import product

from mlpmem.datastore import Datastore
from mlpmem.decoder import Decoder
from mlpmem.documents import Documents
from mlpmem.errors import MlpMemError
from mlpmem.memory import Memory
from train.recipe_after import Evaluate
from train.stage import Context
from train.windows import Golds, curve, look, perplexity, slide

GROUP = "text"
CHOOSING = "valid"
LAMBDAS = tuple(i / 40 for i in range(41))


def measure_text(context: Context, decoder: Decoder, memory: Memory, store: Datastore) -> dict:
    """Return a text corpus's part of results.json."""
    config = _fitting(context.config, decoder, store)
    found = {}
    for split in (CHOOSING, "test"):
        documents = Documents.load(context.inputs["corpus"] / split)
        text = slide(documents, config.window, config.stride, config.tokens, context.seed)
        found[split] = look(decoder, memory, store, text, max(config.ks))
    valid, test = found[CHOOSING], found["test"]
    k, temperature = tune(valid, config)
    others = {
        "memory": (valid.memory, test.memory),
        "knn": (valid.knn(k, temperature), test.knn(k, temperature)),
    }
    curves = {
        source: {
            "lmbdas": list(LAMBDAS),
            f"ppl_{CHOOSING}": curve(valid.lm, chosen, LAMBDAS),
            f"ppl_{GROUP}": curve(test.lm, measured, LAMBDAS),
        }
        for source, (chosen, measured) in others.items()
    }
    lmbda = {source: best_lambda(rows[f"ppl_{CHOOSING}"]) for source, rows in curves.items()}
    ppl = {s: perplexity(test.lm, others[s][1], lmbda[s]) for s in others}
    ppl["lm"] = perplexity(test.lm, test.lm, 0.0)
    return {
        "choosing": CHOOSING,
        "config": asdict(context.config) | {"k": k, "temperature": temperature},
        "lmbda": lmbda,
        "lambda_curves": curves,
        "scored": {split: len(golds.lm) for split, golds in found.items()},
        "share_of_gain": share_of_gain(ppl),
        "systems": {name: {"accuracy": {}, "ppl": {GROUP: value}} for name, value in ppl.items()},
    }


def _fitting(config: Evaluate, decoder: Decoder, store: Datastore) -> Evaluate:
    """Return config with neighbours that the datastore has; MlpMemError for too long a window."""
    if config.window > decoder.max_positions:
        raise MlpMemError(
            f"evaluate: window is {config.window}, the decoder reads {decoder.max_positions} "
            "tokens at most; lower it in the recipe's [evaluate]"
        )
    return replace(config, ks=tuple(sorted({min(k, len(store)) for k in config.ks})))


def tune(valid: Golds, config: Evaluate) -> tuple[int, float]:
    """Return the (k, temperature) whose best lambda gives the lowest validation perplexity."""

    def best(pair: tuple[int, float]) -> float:
        return min(curve(valid.lm, valid.knn(*pair), LAMBDAS))

    return min(product(config.ks, config.temperatures), key=best)


def best_lambda(perplexities: list[float]) -> float:
    """Return the lambda of the lowest perplexity, the smallest of equals."""
    return LAMBDAS[perplexities.index(min(perplexities))]


def share_of_gain(ppl: dict[str, float]) -> float | None:
    """Return (lm - memory) / (lm - knn): how much of what kNN gains the memory gains.

    None where kNN gains nothing.
    """
    gain = ppl["lm"] - ppl["knn"]
    return (ppl["lm"] - ppl["memory"]) / gain if gain > 0 else None
