"""A text's nll and perplexity by every source, and by every lambda, from one pass.

Mixing acts on a token's probability alone, so a grid of lambdas costs nothing beyond the pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mlpmem.errors import MlpMemError
from mlpmem.fused import FusedModel, Store
from mlpmem.settings import check_lmbda

ROWS = 256  # positions whose (rows, V) log-probs exist at a time


@dataclass(frozen=True)
class Score:
    """The nll of every token but the first, given those before it."""

    ids: list[int]  # (T,)
    tokens: list[str]  # (T,) displayable
    nll: Mapping[str, np.ndarray]  # source -> (T - 1,) float64 nats
    lmbda: Mapping[str, float]  # the model's own, by source

    def mixed(self, source: str, lmbda: float | None = None) -> np.ndarray:
        """Return the nll (T - 1,) under the mix; lmbda None is the model's own, 0 for "lm"."""
        if source not in self.nll:
            raise MlpMemError(f"source {source!r} was not scored, there is {', '.join(self.nll)}")
        weight = self.lmbda.get(source, 0.0) if lmbda is None else lmbda
        check_lmbda(weight)
        if weight in (0, 1):
            return self.nll[source if weight else "lm"]
        lm, other = np.log1p(-weight) - self.nll["lm"], np.log(weight) - self.nll[source]
        return -np.logaddexp(lm, other)

    def perplexity(self, source: str = "lm", lmbda: float | None = None) -> float:
        """Return exp of the mean nll under the mix, inf where a token had no probability."""
        return float(np.exp(self.mixed(source, lmbda).mean()))

    def grid(self, source: str, lmbdas: Sequence[float]) -> list[float]:
        """Return the perplexity at every lambda."""
        return [self.perplexity(source, lmbda) for lmbda in lmbdas]


@torch.inference_mode()
def score(model: FusedModel, text: str | Sequence[int], store: Store | None = None) -> Score:
    """Return the Score of a text (or token ids); MlpMemError for fewer than two tokens.

    A text longer than the decoder reads is scored in windows that overlap by half, every token
    once, in the first window that holds it.
    """
    decoder, store = model.decoder, store or model.store
    ids = decoder.encode(text) if isinstance(text, str) else [int(i) for i in text]
    if len(ids) < 2:
        raise MlpMemError(f"the text has {len(ids)} tokens; scoring needs two or more, write more")
    length = min(len(ids), decoder.max_positions, 2048)
    parts: dict[str, list[torch.Tensor]] = {}
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
        done = end
        if end == len(ids):
            break
    nll = {name: torch.cat(rows).numpy() for name, rows in parts.items()}
    return Score(ids, [decoder.pieces[i] for i in ids], nll, model.lmbdas(list(nll), None))
