"""Every source token by token: at a fixed lambda, at a router's, and at the best possible one.

`source_batches` computes the sources and a router's evidence along texts; `measure` scores mixes.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mlpmem.api import Model
from mlpmem.engine.distributions import interpolate
from mlpmem.engine.fused import Sources
from mlpmem.engine.router import Evidence, gaps, reach
from mlpmem.engine.trace import AUTO
from mlpmem.retrieval.documents import Documents
from mlpmem.retrieval.passages import forward_positions
from train.measure.atlas import Test
from train.measure.questions import tally
from train.measure.text import all_positions, groups_of

MODES = ("fixed", AUTO, "oracle")


def measure(
    model: Model, documents: Documents, positions: np.ndarray, modes: Sequence[str] = MODES
) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Return {(system, mode): (right (P,) bool, nll (P,) nats)}, and ("lm", "lm").

    The positions (P,) must ascend.
    """
    read, scored = positions, np.ones(len(positions), bool)
    if any(router.config.evidence for router in model.routers.values()):
        read, scored = reach(documents, positions)
    systems = [system for system in model.routers if model.can_ask(system, model.store)]
    pairs = [("lm", "lm"), *((s, m) for s in systems for m in modes)]
    results = {pair: (np.zeros(len(read), bool), np.zeros(len(read))) for pair in pairs}
    for at, sources, true, evidence in source_batches(model, documents, read, systems):
        for (system, mode), (right, nll) in results.items():
            before = evidence.get(system)
            hits, log_probs = _score(model, sources, system, mode, true, before)
            right[at] = hits.cpu().numpy()
            nll[at] = -log_probs.clamp_min(-60.0).double().cpu().numpy()
    return {pair: (right[scored], nll[scored]) for pair, (right, nll) in results.items()}


def _score(
    model: Model,
    sources: Sources,
    system: str,
    mode: str,
    true: Tensor,
    evidence: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return (whether the true token is the most probable, its log-prob), (R,) each."""
    lm, other = sources["lm"], sources[system]
    if mode == "oracle":
        hits = (lm.argmax(-1) == true) | (other.argmax(-1) == true)
        return hits, torch.maximum(gold(sources, "lm", true), gold(sources, system, true))
    lmbda = AUTO if mode == AUTO else 0.0 if system == "lm" else model.settings.of(system)
    mixed = interpolate(lm, other, model.weights(sources, system, lmbda, evidence))
    return mixed.argmax(-1) == true, mixed.gather(1, true[:, None])[:, 0]


def measure_routed(model: Model, test: Test) -> dict[str, dict]:
    """Return {system: {"accuracy", "ppl"}} at the routers' lambdas, as in `measure_atlas`."""
    questions, positions = test.questions, all_positions(test.text)
    answers = measure(model, questions.documents, questions.positions, (AUTO,))
    texts, groups = measure(model, test.text, positions, (AUTO,)), groups_of(test.text, positions)
    return {
        system: {
            "accuracy": tally(questions, right),
            "ppl": {
                str(g): float(np.exp(texts[system, AUTO][1][groups == g].mean()))
                for g in dict.fromkeys(groups)
            },
        }
        for (system, mode), (right, _) in answers.items()
        if mode == AUTO
    }


ROWS = 256  # positions whose (rows, V) log-probs are computed at once


def source_batches(
    model: Model, documents: Documents, positions: np.ndarray, systems: Sequence[str]
) -> Iterator[tuple[np.ndarray, Sources, Tensor, dict[str, Tensor]]]:
    """Yield (indices into positions, Sources, true tokens, evidence (n,) by system), ROWS at most.

    The positions must be those of whole texts or of `reach`: evidence needs the tokens before.
    """
    true = torch.from_numpy(documents.tokens[positions].astype(np.int64))
    texts, evidence = documents.passage_at(positions), {system: Evidence() for system in systems}
    for at, hidden, logits, *_ in forward_positions(model.decoder, documents, positions):
        for start in range(0, len(at), ROWS):
            part = slice(start, start + ROWS)
            sources = model.sources(hidden[part], logits[part], model.store)
            tokens = true[at[part]].to(sources.log_probs.device)
            before = {
                system: state.read(texts[at[part]], gaps(sources["lm"], sources[system], tokens))
                for system, state in evidence.items()
            }
            yield at[part], sources, tokens, before


def gold(sources: Sources, system: str, true: Tensor) -> Tensor:
    """Return a system's log-probs (R,) of the true tokens."""
    return sources[system].gather(1, true[:, None])[:, 0]
