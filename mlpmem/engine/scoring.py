"""A text's nll and perplexity by every source, and by every lambda, from one pass.

Mixing acts on a token's probability alone, so a grid of lambdas costs nothing beyond the pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mlpmem.engine.fused import FusedModel
from mlpmem.engine.settings import check_lmbda
from mlpmem.engine.trace import AUTO, PARTS
from mlpmem.errors import MlpMemError
from mlpmem.evidence import Evidence, gaps
from mlpmem.sources import Store
from mlpmem.token_ids import read_ids

ROWS = 256  # positions whose (rows, V) log-probs exist at a time


@dataclass(frozen=True)
class Score:
    """The nll of every token but the first, given those before it."""

    ids: list[int]  # (T,)
    tokens: list[str]  # (T,) displayable
    nll: Mapping[str, np.ndarray]  # source -> (T - 1,) float64 nats
    lmbda: Mapping[str, float | str]  # the model's own, by system; "auto" is the router's
    routed: Mapping[str, np.ndarray]  # system -> (T - 1,) lambda of every token, by its router

    def mixed(self, source: str, lmbda: float | str | None = None) -> np.ndarray:
        """Return the nll (T - 1,) under a system's mix; lmbda None is the model's own, 0 for "lm".

        With "auto" every token has the lambda that the system's router chose for it.
        """
        parts = PARTS.get(source, ()) or ("lm",)
        if source not in PARTS or not self.nll.keys() >= set(parts):
            raise MlpMemError(f"source {source!r} was not scored, there is {', '.join(self.nll)}")
        weight = self.lmbda.get(source, 0.0) if lmbda is None else lmbda
        other = -np.logaddexp.reduce([-self.nll[part] for part in parts]) + np.log(len(parts))
        if isinstance(weight, str) and weight == AUTO and source in self.routed:
            return _mix(self.nll["lm"], other, self.routed[source])
        check_lmbda(weight)
        return _mix(self.nll["lm"], other, weight)

    def perplexity(self, source: str = "lm", lmbda: float | str | None = None) -> float:
        """Return exp of the mean nll under the mix, inf where a token had no probability."""
        return float(np.exp(self.mixed(source, lmbda).mean()))

    def grid(self, source: str, lmbdas: Sequence[float]) -> list[float]:
        """Return the perplexity at every lambda."""
        return [self.perplexity(source, lmbda) for lmbda in lmbdas]


def _mix(lm: np.ndarray, other: np.ndarray, lmbda: float | np.ndarray) -> np.ndarray:
    """Return the mix's nll of two nlls; exact where lmbda is 0 or 1."""
    with np.errstate(divide="ignore"):
        mixed = -np.logaddexp(np.log1p(-lmbda) - lm, np.log(lmbda) - other)
    return np.where(lmbda == 0, lm, np.where(lmbda == 1, other, mixed))


@torch.inference_mode()
def score(model: FusedModel, text: str | Sequence[int], store: Store | None = None) -> Score:
    """Return the Score of a text (or token ids); MlpMemError for fewer than two tokens.

    A text longer than the decoder reads is scored in windows that overlap by half, every token
    once, in the first window that holds it.
    """
    decoder, store = model.decoder, store or model.store
    ids = read_ids(decoder, text, "the text")
    if len(ids) < 2:
        raise MlpMemError(f"the text has {len(ids)} tokens; scoring needs two or more, write more")
    length = min(len(ids), decoder.max_positions, 2048)
    parts: dict[str, list[torch.Tensor]] = {}
    routed: dict[str, list[torch.Tensor]] = {}
    systems = [system for system in PARTS if model.can_ask(system, store)]
    evidence = Evidence()
    done = 1  # tokens scored, the first needs none
    for start in range(0, len(ids), max(1, length // 2)):
        window = torch.tensor([ids[start : start + length]])
        output = decoder.forward(window)
        end = start + window.shape[1]
        for begin in range(done, end, ROWS):
            at = torch.arange(begin, min(begin + ROWS, end))
            hidden, logits = (x[0, at - 1 - start] for x in (output.hidden, output.logits))
            sources = model.sources(hidden, logits, store)
            targets = torch.tensor(ids)[at].to(logits.device).view(1, -1, 1)
            nll = -sources.log_probs.gather(-1, targets.expand(len(sources.names), -1, 1))
            for name, row in zip(sources.names, nll[..., 0].double().cpu(), strict=True):
                parts.setdefault(name, []).append(row)
            for system in model.routed(store).keys() & systems:
                found = gaps(sources["lm"], sources[system], torch.tensor(ids)[at])
                before = evidence.read([system] * len(at), found)
                weights = model.weights(sources, system, AUTO, before).double().cpu()
                routed.setdefault(system, []).append(weights)
        done = end
        if end == len(ids):
            break
    nll, routed = (
        {name: torch.cat(rows).numpy() for name, rows in found.items()} for found in (parts, routed)
    )
    pieces = [decoder.pieces[i] for i in ids]
    return Score(ids, pieces, nll, model.lmbdas(systems, None, store), routed)
