"""Systems: one interface for everything that answers a prompt.

A system has a decoder, the ids it reads for a prompt (`context`), the log-probs of its sources at a
hidden state and its logits (`sources`), and their `mix`. If a router chooses lambda, `mix` needs
the evidence of the text so far. A ModelSystem is one system of a model at one lambda: the decoder
only, with its memory, or with its datastore. A tuned or larger decoder, or another memory, is a
system of a model that holds it; retrieval before the prompt is `rag.py`.
"""

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from mlpmem.engine.call import Event
from mlpmem.engine.distributions import interpolate
from mlpmem.engine.fused import Sources
from mlpmem.engine.router import REACH, Evidence, gaps
from mlpmem.engine.trace import AUTO, PARTS, Trace
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.model.prompts import check_prompt
from mlpmem.retrieval.datastore import Store


class System(Protocol):
    """A system, by the interface that tasks, benches and the page use."""

    @property
    def name(self) -> str:
        """Return its name on a command line: "memory", "rag"."""

    @property
    def label(self) -> str:
        """Return its name in a table or a column's head."""

    @property
    def bytes(self) -> int:
        """Return the bytes it holds in memory: weights, entries, indexes."""

    @property
    def seconds(self) -> float:
        """Return the seconds to build it, without the decoder."""

    @property
    def decoder(self) -> Decoder:
        """Return its decoder."""

    def context(self, ids: Sequence[int], room: int) -> list[int]:
        """Return the ids the decoder reads for a prompt, with room for `room` more tokens."""

    @property
    def reads_evidence(self) -> bool:
        """Return whether `mix` needs evidence."""

    def sources(self, hidden: Tensor, logits: Tensor) -> Sources:
        """Return its sources at hidden states (R, D) with the decoder's logits (R, V)."""

    def gaps(self, sources: Sources, tokens: Tensor) -> Tensor:
        """Return the gaps (R,) of tokens (R,), for Evidence; see router.gaps."""

    def mix(self, sources: Sources, evidence: Tensor | None = None) -> Tensor:
        """Return log-probs (R, V); evidence (R,) is that before each row's token."""

    def log_probs(self, ids: Sequence[int], last: int = 1) -> Tensor:
        """Return the next token's log-probs (last, V) after each of the last positions of ids."""

    def stream(self, prompt: str | Sequence[int], **options) -> Iterator[Event]:
        """Yield the Events of an answer, under the system's name; options as of Model.stream."""

    def generate(self, prompt: str | Sequence[int], **options) -> Trace:
        """Return the Trace of an answer; options as of Model.stream."""


class StreamingModel(Protocol):
    """A FusedModel that also generates: mlpmem.api.Model, which this room cannot import."""

    decoder: Decoder
    memory: Memory | None

    @property
    def store(self) -> Store | None:
        """Return the datastore with its retriever."""

    def lmbdas(
        self, systems: Sequence[str], lmbda: Any, store: Store | None = None
    ) -> dict[str, float | str]:
        """Return lambda by system."""

    def reads_evidence(self, system: str, store: Store | None = None) -> bool:
        """Return whether a system's router reads evidence."""

    def sources(
        self, hidden: Tensor, logits: Tensor, store: Store | None, parts: Collection[str] = ...
    ) -> Sources:
        """Return the sources at hidden states (R, D) with logits (R, V)."""

    def weights(
        self, sources: Sources, system: str, lmbda: float | str, evidence: Tensor | None = None
    ) -> Tensor:
        """Return lambda (R,) per position."""

    def stream(
        self, prompt: str | Sequence[int], systems: Sequence[str] | None = None, **options: Any
    ) -> Iterator[Event]:
        """Yield the Events of some systems."""


@dataclass(frozen=True)
class ModelSystem:
    """One system of a model, at one lambda or its router's."""

    model: StreamingModel
    system: str = "lm"
    lmbda: float | str | None = None  # "auto" is the router's, None the model's own
    name: str = ""  # "" is the system's
    label: str = ""  # "" is LABELS'
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Set the default name and label."""
        object.__setattr__(self, "name", self.name or self.system)
        object.__setattr__(self, "label", self.label or LABELS.get(self.system, self.name))

    @property
    def decoder(self) -> Decoder:
        """Return the model's decoder."""
        return self.model.decoder

    @property
    def bytes(self) -> int:
        """Return the bytes of the decoder, and of memory and datastore if this system uses them."""
        model, parts = self.model, PARTS[self.system]
        needed = {"memory": model.memory, "knn": model.store}
        return model.decoder.bytes + sum(x.bytes for n, x in needed.items() if x and n in parts)

    def context(self, ids: Sequence[int], room: int) -> list[int]:
        """Return ids unchanged."""
        return list(ids)

    @property
    def _own(self) -> float | str:
        """Return this system's lambda, by default the model's."""
        return self.model.lmbdas([self.system], self.lmbda)[self.system]

    @property
    def reads_evidence(self) -> bool:
        """Return whether a router that reads evidence chooses its lambda."""
        return self._own == AUTO and self.model.reads_evidence(self.system, self.model.store)

    def sources(self, hidden: Tensor, logits: Tensor) -> Sources:
        """Return its sources at hidden states (R, D) with the decoder's logits (R, V)."""
        return self.model.sources(hidden, logits, self.model.store, PARTS[self.system])

    def gaps(self, sources: Sources, tokens: Tensor) -> Tensor:
        """Return the gaps (R,) of tokens (R,), for Evidence."""
        return gaps(sources["lm"], sources[self.system], tokens)

    @torch.inference_mode()
    def mix(self, sources: Sources, evidence: Tensor | None = None) -> Tensor:
        """Return log-probs (R, V); evidence (R,) is that before each row's token."""
        weights = self.model.weights(sources, self.system, self._own, evidence)
        return interpolate(sources["lm"], sources[self.system], weights)

    def log_probs(self, ids: Sequence[int], last: int = 1) -> Tensor:
        """Return the next token's log-probs (last, V) after each of the last positions of ids."""
        return next_log_probs(self, ids, last)

    def at(self, lmbda: float | str | None) -> "ModelSystem":
        """Return this system at another lambda; None keeps its own."""
        return self if lmbda is None else replace(self, lmbda=lmbda)

    def stream(self, prompt: str | Sequence[int], **options) -> Iterator[Event]:
        """Yield the Events of an answer, under this system's name; options as of Model.stream."""
        for event in self.model.stream(prompt, [self.system], lmbda=self.lmbda, **options):
            (value,) = event.values.values()
            value = named(value, self) if event.kind == "done" else value
            yield Event(event.kind, {self.name: value})

    def generate(self, prompt: str | Sequence[int], **options) -> Trace:
        """Return the Trace of an answer; options as of Model.stream."""
        return last_trace(self.stream(prompt, **options))


LABELS = {
    "lm": "decoder",
    "memory": "decoder + memory",
    "knn": "decoder + kNN",
    "mixed": "decoder + memory and kNN",
}


def last_trace(events: Iterator[Event]) -> Trace:
    """Return the single trace that a system's events end with."""
    *_, done = events
    (trace,) = done.values.values()
    return trace


def named(trace: Trace, system: System) -> Trace:
    """Return a trace that has the system's name and label, if its own `system` differs."""
    if system.name == trace.system:
        return trace
    return replace(trace, model={**trace.model, "column": system.name, "label": system.label})


@torch.inference_mode()
def follow(
    system: System,
    evidence: Evidence,
    texts: Sequence[Hashable],
    states: tuple[Tensor, Tensor],
    tokens: Tensor,
) -> Tensor:
    """Return a system's log-probs (R, V) at states (hidden (R, D), logits (R, V)) of texts (R,).

    The next tokens (R,) are added to the evidence, so rows of a text must be in its order.
    """
    sources = system.sources(*states)
    before = None
    if system.reads_evidence:
        before = evidence.read(texts, system.gaps(sources, tokens))
    return system.mix(sources, before)


@torch.inference_mode()
def next_log_probs(system: System, ids: Sequence[int], last: int = 1) -> Tensor:
    """Return a system's log-probs (last, V) after each of the last positions of ids.

    The prompt, ids[: -last + 1], is extended by the system's context. MlpMemError if all of it does
    not fit in the decoder.
    """
    end = len(ids) - (last - 1)  # of the prompt
    read = [*system.context(ids[:end], last), *ids[end:]]
    read = check_prompt(system.decoder, read, 0)
    rows = min(len(read), last + REACH) if system.reads_evidence else last
    output = system.decoder.forward(torch.tensor([read]), last=rows)
    tokens = torch.tensor([*read[len(read) - rows + 1 :], 0])  # 0: the token after the last row
    return follow(system, Evidence(), [0] * rows, output.states(0), tokens)[-last:]
