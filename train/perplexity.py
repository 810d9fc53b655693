"""What a text corpus measures: the perplexity of its test split by every source.

Neighbours, temperature and both lambdas are chosen on the validation split; the test split only
measures. Windows are as long as the passages that were keyed, or the keys would lack what the
queries know.
"""

from dataclasses import asdict, dataclass
from itertools import product

import numpy as np

from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.documents import Documents
from train.measure.text import Golds, curve, look, slide
from train.recipe_after import Evaluate
from train.run.stage import Context

GROUP = "text"
CHOOSING = "valid"
LAMBDAS = tuple(i / 40 for i in range(41))


def measure_text(context: Context, decoder: Decoder, memory: Memory, store: Datastore) -> dict:
    """Return a text corpus's part of results.json."""
    config = context.config
    if config.window > decoder.max_positions:
        raise MlpMemError(
            f"evaluate: window is {config.window}, the decoder reads {decoder.max_positions} "
            "tokens at most; lower it in the recipe's [evaluate]"
        )
    found = {}
    for split in (CHOOSING, "test"):
        documents = Documents.load(context.inputs["corpus"] / split)
        text = slide(documents, config.window, config.stride, config.tokens, context.seed)
        found[split] = look(decoder, memory, store, text, max(config.ks))
    valid, test = found[CHOOSING], found["test"]
    use = choose(valid, config)
    curves = {
        source: {
            "lmbdas": list(LAMBDAS),
            f"ppl_{CHOOSING}": curve(valid.lm, use.other(valid, source), LAMBDAS),
            f"ppl_{GROUP}": curve(test.lm, use.other(test, source), LAMBDAS),
        }
        for source in use.lmbda
    }
    ppl = {s: float(np.exp(use.nll(test, s).mean())) for s in ("memory", "knn", "lm")}
    return {
        "choosing": CHOOSING,
        "config": asdict(config) | {"k": use.k, "temperature": use.temperature},
        "lmbda": use.lmbda,
        "lambda_curves": curves,
        "scored": {split: len(golds.lm) for split, golds in found.items()},
        "share_of_gain": share_of_gain(ppl),
        "systems": {name: {"accuracy": {}, "ppl": {GROUP: value}} for name, value in ppl.items()},
    }


@dataclass(frozen=True)
class Use:
    """How a text's sources are used."""

    k: int
    temperature: float
    lmbda: dict[str, float]  # of "memory" and "knn"

    def other(self, golds: Golds, source: str) -> np.ndarray:
        """Return the true tokens' probability (P,) by memory or kNN."""
        return golds.memory if source == "memory" else golds.knn(self.k, self.temperature)

    def nll(self, golds: Golds, system: str) -> np.ndarray:
        """Return the true tokens' nll (P,) in nats by "lm", or by the mix with memory or kNN."""
        if system == "lm":
            return golds.nll(golds.lm, 0.0)
        return golds.nll(self.other(golds, system), self.lmbda[system])


def choose(valid: Golds, config: Evaluate) -> Use:
    """Return the k, temperature and lambdas that give the lowest validation perplexity.

    k and temperature are those of the best pair, each pair at its own best lambda.
    """
    ks = sorted({min(k, valid.distances.shape[1]) for k in config.ks})

    def best(pair: tuple[int, float]) -> float:
        return min(curve(valid.lm, valid.knn(*pair), LAMBDAS))

    k, temperature = min(product(ks, config.temperatures), key=best)
    others = {"memory": valid.memory, "knn": valid.knn(k, temperature)}
    lmbda = {s: best_lambda(curve(valid.lm, other, LAMBDAS)) for s, other in others.items()}
    return Use(k, temperature, lmbda)


def best_lambda(perplexities: list[float]) -> float:
    """Return the lambda of the lowest perplexity, the smallest of equals."""
    return LAMBDAS[perplexities.index(min(perplexities))]


def share_of_gain(ppl: dict[str, float]) -> float | None:
    """Return (lm - memory) / (lm - knn): how much of what kNN gains the memory gains.

    None where kNN gains nothing.
    """
    gain = ppl["lm"] - ppl["knn"]
    return (ppl["lm"] - ppl["memory"]) / gain if gain > 0 else None
