"""What mix is best? Perplexity of held-out text over lambda, and over k and temperature of kNN.

Nothing is trained. The curves over lambda use the k and temperature of evaluate. Each pair of k and
temperature gets its own best lambda, so that only the pair differs. With an atlas, each pair also
answers the dev questions, which may prefer another pair.
"""

from collections.abc import Iterator
from itertools import product

import numpy as np

from train.measure.atlas import ATLAS_LAMBDAS, CHOOSING, MeasuredModel
from train.measure.findings import Finding, perplexity, share
from train.measure.questions import tally
from train.measure.text import TEXT_LAMBDAS, best_lambda, curve, groups_of, measure_golds, units_of
from train.studies.run import Run, pooled

STEP = 2  # only every second lambda is reported


def mixing(run: Run) -> Iterator[Finding]:
    """Yield perplexity by group over lambda, and over k and temperature."""
    documents, positions = run.text()
    config = run.config
    ks = sorted({min(k, len(run.store)) for k in (*config.ks, run.knn[0])})
    golds = measure_golds(run.decoder, run.memory, run.store, (documents, positions), ks[-1])
    parts, units = pooled(groups_of(documents, positions)), units_of(documents, positions)
    for split, mask in parts.items():
        for system, other in (("memory", golds.memory), ("knn", golds.knn(*run.knn))):
            for lmbda in TEXT_LAMBDAS[::STEP]:
                ppl = perplexity(golds.nll(other, lmbda)[mask], units[mask])
                yield run.finding(system, split, "perplexity", ppl, lmbda=lmbda)
        for k, temperature in product(ks, config.temperatures):
            other = golds.knn(k, temperature)
            lmbda = best_lambda(curve(golds.lm[mask], other[mask], TEXT_LAMBDAS))
            ppl = perplexity(golds.nll(other, lmbda)[mask], units[mask])
            setting = {"k": k, "temperature": temperature, "best_lmbda": lmbda}
            yield run.finding("knn", split, "perplexity", ppl, **setting)
    if run.kind.has_questions:
        for k, temperature in product(ks, config.temperatures):
            yield _dev_accuracy(run, k, temperature)


def _dev_accuracy(run: Run, k: int, temperature: float) -> Finding:
    """Return the share of dev questions that the datastore answers exactly at its best lambda."""
    sources = MeasuredModel(run.decoder, None, run.store, k, temperature)
    grid = sources.grid(run.dev.documents, run.dev.positions)
    right = {at: tally(run.dev, grid.right["knn"][:, at]) for at in range(len(ATLAS_LAMBDAS))}
    counts = {at: sum(cell["right"] for cell in cells.values()) for at, cells in right.items()}
    best = max(counts, key=counts.get)
    exact = np.arange(len(run.dev.rows)) < counts[best]
    setting = {"k": k, "temperature": temperature, "best_lmbda": ATLAS_LAMBDAS[best]}
    return run.finding("knn", CHOOSING, "exact_match", share(exact), **setting)
