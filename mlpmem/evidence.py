"""Evidence: which of two sources has been right about a text so far.

Two experts that are mixed ought to be weighed by what each gave to what was read already: Bayes'
rule, with older tokens forgotten little by little (dynamic model averaging: Raftery, Karny and
Ettler 2010, Technometrics 52(1)). It costs no model: decoder and other source are asked about every
token anyhow when it is generated, and about a prompt's tokens in its one pass. R positions.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpmem.engine.trace import PARTS
from mlpmem.retrieval.documents import Documents
from mlpmem.sources import Store

DECAY = 0.9  # a token counts so much of what the next one does
LEAST = -4.0  # nats; how much less probable a surprise was to a source says nothing
REACH = 96  # tokens back; those further away would count DECAY ** REACH, 4e-5


def gaps(lm: Tensor, other: Tensor, tokens: Tensor) -> Tensor:
    """Return by how many nats (R,) the other source gave tokens (R,) more, of log-probs (R, V).

    Between LEAST and -LEAST: a word that surprises both, such as a made-up one, counts nothing.
    """
    at = tokens.to(lm.device).unsqueeze(-1)
    ours, theirs = (x.gather(-1, at).squeeze(-1).clamp_min(LEAST) for x in (lm, other))
    return theirs - ours


class Evidence:
    """The evidence of several texts, each read from its first token to its last."""

    def __init__(self) -> None:
        """Begin with nothing read."""
        self._now: dict[Hashable, float] = {}
        self.seconds: Mapping[str, float] = {}  # what the sources took to read a prompt

    def now(self, texts: Iterable[Hashable]) -> Tensor:
        """Return the evidence (R,) before the next token of each text, 0 where none was read."""
        return torch.tensor([self._now.get(text, 0.0) for text in texts])

    def read(self, texts: Sequence[Hashable], found: Tensor) -> Tensor:
        """Return the evidence (R,) before tokens of gaps `found` (R,), and read them one by one."""
        before = []
        for text, gap in zip(texts, found.tolist(), strict=True):
            before.append(self._now.get(text, 0.0))
            self._now[text] = DECAY * before[-1] + gap
        return torch.tensor(before)


def reached(ids: Sequence[int], wanted: bool = True) -> int:
    """Return how many of a prompt's last tokens are evidence; its first one never is."""
    return min(REACH, len(ids) - 1) if wanted else 0


def read_prompt(
    model: Any, output: Any, ids: Sequence[int], columns: Mapping[Any, str], store: Store | None
) -> Evidence:
    """Return the evidence of a prompt for columns {name: system}, by name.

    output is a decoder's, of which the first position is that before the first token that counts.
    """
    evidence, count = Evidence(), reached(ids, bool(columns))
    if not count:
        return evidence
    searched = any("knn" in PARTS[system] for system in columns.values())
    states = output.hidden[0, :count], output.logits[0, :count]
    sources = model.sources(*states, store if searched else None)
    evidence.seconds = sources.seconds
    tokens = torch.tensor(ids[-count:])
    for name, system in columns.items():
        evidence.read([name] * count, gaps(sources["lm"], sources[system], tokens))
    return evidence


def reach(documents: Documents, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (positions (R,) with the REACH ones before each in its passage, which are asked (R,)).

    ValueError unless the positions (P,) ascend and none is a passage's first token, which nothing
    comes before.
    """
    first = documents.offsets[documents.passage_at(positions)] + 1
    edges = np.zeros(len(documents.tokens) + 1, np.int64)
    np.add.at(edges, np.maximum(first, positions - REACH), 1)
    np.add.at(edges, positions + 1, -1)
    if (positions < first).any() or (np.diff(positions) <= 0).any():
        raise ValueError("positions must ascend, and leave out what begins a passage")
    wanted = np.flatnonzero(np.cumsum(edges))
    return wanted, np.isin(wanted, positions)
