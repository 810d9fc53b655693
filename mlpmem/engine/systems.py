"""Systems: whatever answers a prompt, behind one interface, so that all can be asked the same.

A system is a decoder, what it reads for a prompt (`context`), what its sources say at a hidden
state with its logits (`sources`), and their `mix`, for which a router needs the evidence of what
was read before. A ModelSystem is one system of a model at one lambda: the decoder only, with its
memory, with its datastore. A tuned or a larger decoder, or a memory trained otherwise, is a system
of a model that holds it; retrieval before the prompt is `rag.py`.
"""

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from mlpmem.engine.distributions import interpolate
from mlpmem.engine.fused import Sources
from mlpmem.engine.generation import Event
from mlpmem.engine.router import REACH, Evidence, gaps
from mlpmem.engine.trace import AUTO, PARTS, Trace
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.model.prompts import check_prompt
from mlpmem.retrieval.datastore import Store


class System(Protocol):
    """Whatever answers."""

    @property
    def name(self) -> str:
        """Return its name as a person types it: "memory", "rag"."""

    @property
    def label(self) -> str:
        """Return its name as a table or a column's head shows it."""

    @property
    def bytes(self) -> int:
        """Return what is kept in memory to serve it: weights, entries, indexes."""

    @property
    def seconds(self) -> float:
        """Return what making it took beyond the decoder."""

    @property
    def decoder(self) -> Decoder:
        """Return the decoder that reads."""

    def context(self, ids: Sequence[int], room: int) -> list[int]:
        """Return what the decoder reads for a prompt's ids, `room` more tokens to follow."""

    @property
    def routed(self) -> bool:
        """Return whether its mix needs evidence."""

    def sources(self, hidden: Tensor, logits: Tensor) -> Sources:
        """Return what its sources say at hidden states (R, D) with the decoder's logits (R, V)."""

    def gaps(self, sources: Sources, tokens: Tensor) -> Tensor:
        """Return what tokens (R,) are worth as evidence, (R,)."""

    def mix(self, sources: Sources, evidence: Tensor | None = None) -> Tensor:
        """Return log-probs (R, V); evidence (R,) is that before each row's token."""

    def log_probs(self, ids: Sequence[int], last: int = 1) -> Tensor:
        """Return log-probs (last, V): the next token's after each of the last positions of ids."""

    def stream(self, prompt: str | Sequence[int], **options) -> Iterator[Event]:
        """Yield the Events of an answer, by the system's name; options as of Model.stream."""

    def generate(self, prompt: str | Sequence[int], **options) -> Trace:
        """Return the Trace of an answer; options as of Model.stream."""


class StreamingModel(Protocol):
    """A FusedModel that also writes: mlpmem.api.Model, which stands above this room."""

    decoder: Decoder
    memory: Memory | None

    @property
    def store(self) -> Store | None:
        """Return datastore and retriever."""

    def lmbdas(
        self, systems: Sequence[str], lmbda: Any, store: Store | None = None
    ) -> dict[str, float | str]:
        """Return every system's lambda."""

    def sources(
        self, hidden: Tensor, logits: Tensor, store: Store | None, parts: Collection[str] = ...
    ) -> Sources:
        """Return what sources say at hidden states (R, D) with logits (R, V)."""

    def weights(
        self, sources: Sources, system: str, lmbda: float | str, evidence: Tensor | None = None
    ) -> Tensor:
        """Return lambda (R,) at every position."""

    def stream(
        self, prompt: str | Sequence[int], systems: Sequence[str] | None = None, **options: Any
    ) -> Iterator[Event]:
        """Yield the Events of some systems."""


@dataclass(frozen=True)
class ModelSystem:
    """One system of a model, at one lambda or at the router's."""

    model: StreamingModel
    system: str = "lm"
    lmbda: float | str | None = None  # "auto" is the router's; None: the model's own
    name: str = ""  # none: the system's
    label: str = ""  # likewise
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Fill in name and label."""
        object.__setattr__(self, "name", self.name or self.system)
        object.__setattr__(self, "label", self.label or LABELS.get(self.system, self.name))

    @property
    def decoder(self) -> Decoder:
        """Return the model's decoder."""
        return self.model.decoder

    @property
    def bytes(self) -> int:
        """Return the bytes of decoder, and of memory and datastore where this system needs them."""
        model, parts = self.model, PARTS[self.system]
        needed = {"memory": model.memory, "knn": model.store}
        return model.decoder.bytes + sum(x.bytes for n, x in needed.items() if x and n in parts)

    def context(self, ids: Sequence[int], room: int) -> list[int]:
        """Return ids as they are."""
        return list(ids)

    @property
    def _own(self) -> float | str:
        """Return this system's lambda, the model's where it names none."""
        return self.model.lmbdas([self.system], self.lmbda)[self.system]

    @property
    def routed(self) -> bool:
        """Return whether a router chooses its lambda."""
        return self._own == AUTO

    def sources(self, hidden: Tensor, logits: Tensor) -> Sources:
        """Return what its sources say at hidden states (R, D) with the decoder's logits (R, V)."""
        return self.model.sources(hidden, logits, self.model.store, PARTS[self.system])

    def gaps(self, sources: Sources, tokens: Tensor) -> Tensor:
        """Return what tokens (R,) are worth as evidence, (R,)."""
        return gaps(sources["lm"], sources[self.system], tokens)

    @torch.inference_mode()
    def mix(self, sources: Sources, evidence: Tensor | None = None) -> Tensor:
        """Return log-probs (R, V); evidence (R,) is that before each row's token."""
        weights = self.model.weights(sources, self.system, self._own, evidence)
        return interpolate(sources["lm"], sources[self.system], weights)

    def log_probs(self, ids: Sequence[int], last: int = 1) -> Tensor:
        """Return log-probs (last, V): the next token's after each of the last positions of ids."""
        return next_log_probs(self, ids, last)

    def at(self, lmbda: float | str | None) -> "ModelSystem":
        """Return this system at another lambda; None leaves it at its own."""
        return self if lmbda is None else replace(self, lmbda=lmbda)

    def stream(self, prompt: str | Sequence[int], **options) -> Iterator[Event]:
        """Yield the Events of an answer, by this system's name; options as of Model.stream."""
        for event in self.model.stream(prompt, [self.system], lmbda=self.lmbda, **options):
            (value,) = event.values.values()
            yield Event(event.kind, {self.name: named(value, self) if _ends(event) else value})

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
    """Return the one trace that a system's events end with."""
    *_, done = events
    (trace,) = done.values.values()
    return trace


def named(trace: Trace, system: System) -> Trace:
    """Return a trace that says whose it is, where its sources do not say it already."""
    if system.name == trace.system:
        return trace
    return replace(trace, model={**trace.model, "column": system.name, "label": system.label})


def _ends(event: Event) -> bool:
    """Return whether an event carries traces."""
    return event.kind == "done"


@torch.inference_mode()
def follow(
    system: System,
    evidence: Evidence,
    texts: Sequence[Hashable],
    states: tuple[Tensor, Tensor],
    tokens: Tensor,
) -> Tensor:
    """Return a system's log-probs (R, V) at states (hidden (R, D), logits (R, V)) of texts (R,).

    The tokens (R,) that come next there are read: rows of a text are in its order.
    """
    sources = system.sources(*states)
    before = None
    if system.routed:
        before = evidence.read(texts, system.gaps(sources, tokens))
    return system.mix(sources, before)


@torch.inference_mode()
def next_log_probs(system: System, ids: Sequence[int], last: int = 1) -> Tensor:
    """Return a system's log-probs (last, V) after each of the last positions of ids.

    What it reads beside the prompt stands before ids[: -last + 1], the prompt. MlpMemError where
    this does not fit.
    """
    begun = len(ids) - (last - 1)
    read = [*system.context(ids[:begun], last), *ids[begun:]]
    read = check_prompt(system.decoder, read, 0)
    rows = min(len(read), last + REACH) if system.routed else last
    output = system.decoder.forward(torch.tensor([read]), last=rows)
    tokens = torch.tensor([*read[len(read) - rows + 1 :], 0])  # what comes after all is not asked
    return follow(system, Evidence(), [0] * rows, output.states(0), tokens)[-last:]
