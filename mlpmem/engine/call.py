"""One call of a generation: its checked parameters, its writers, its events and its clock.

`generation.py` runs a call.
"""

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple, Protocol

from mlpmem.engine.fused import FusedModel, systems_of
from mlpmem.engine.prefix import PrefixCache
from mlpmem.engine.settings import GenerationOptions
from mlpmem.engine.trace import AUTO, PARTS, Step, Trace
from mlpmem.errors import MlpMemError
from mlpmem.model.prompts import check_ids, check_prompt
from mlpmem.model.tokenizer import TextEnd, TextStream
from mlpmem.retrieval.datastore import Store

TIMED = {"memory": "memory", "knn": "search"}  # part -> its key in Sources.seconds


class Cancel(Protocol):
    """An object that can end a run, such as a threading.Event."""

    def is_set(self) -> bool:
        """Return whether the run must end."""


@dataclass(frozen=True)
class Event:
    """A "step" with {name: Step}, or at the end "done" with {name: Trace}.

    A writer's name is its system in `compare` and its lambda in `scrub`.
    """

    kind: str
    values: Mapping[Any, Any]


def last_values(events: Iterator[Event]) -> dict[Any, Trace]:
    """Return the traces that a run's events end with, {} for a run without traces."""
    *_, last = events
    return dict(last.values) if last.kind == "done" else {}


class Prompt(NamedTuple):
    """What the writers continue."""

    text: str
    ids: list[int]


@dataclass
class Writer:
    """One system at one lambda in one call, with what it has written so far."""

    name: Hashable
    system: str
    lmbda: float | str
    prompt: Prompt
    row: int = 0  # of the batch
    sample: int = 0  # its random numbers are those of the call's seed + sample
    steps: list[Step] = field(default_factory=list)
    text: TextStream = field(default_factory=TextStream)
    end: TextEnd = field(default_factory=TextEnd)
    finish: str = ""

    @property
    def ids(self) -> list[int]:
        """Return the prompt's token ids and those written."""
        return [*self.prompt.ids, *(step.token_id for step in self.steps)]


@dataclass
class Clock:
    """Milliseconds per token by part; a batch's time is divided by its rows."""

    prefill_ms: float = 0.0
    read: Mapping[str, float] = field(default_factory=dict)  # seconds per source to read the prompt
    parts: dict[str, list[float]] = field(default_factory=dict)
    reused: int = 0  # tokens of the prompt that were read before

    def add(self, part: str, seconds: float, rows: int) -> None:
        """Record the seconds of a part for some rows."""
        self.parts.setdefault(f"{part}_ms", []).append(1000 * seconds / rows)

    def cost(self, call: "Call", writer: Writer) -> dict[str, float]:
        """Return medians in ms and sizes in bytes; for a single token, decoder_ms is the prefill.

        A routed writer's evidence_ms is the time its sources took to read the prompt, where that is
        not a part of the prefill.
        """
        times = {"decoder_ms": self.prefill_ms} | {p: median(ms) for p, ms in self.parts.items()}
        sizes = {"decoder_bytes": call.model.decoder.bytes}
        if call.model.memory is not None and "memory" in call.parts:
            sizes["memory_bytes"] = call.model.memory.bytes
        if call.store is not None and "knn" in call.parts:
            sizes["datastore_bytes"] = call.store.bytes
        if writer.lmbda == AUTO and self.read:
            seconds = (self.read.get(TIMED[part], 0.0) for part in PARTS[writer.system])
            times["evidence_ms"] = 1000 * sum(seconds)
        reused = {"reused_tokens": self.reused} if self.reused else {}
        return {"prefill_ms": self.prefill_ms, **times, **sizes, **reused}


@dataclass(frozen=True)
class Call:
    """The checked parameters of a call; they do not change while tokens are written."""

    model: FusedModel
    store: Store | None
    parts: Collection[str]  # sources to compute, without "lm"
    options: GenerationOptions
    cancel: Cancel | None
    special: bool = False  # whether control tokens in a prompt are read as such
    ranked: int | None = None  # how many of the mix's likeliest tokens a step ranks
    prefix: PrefixCache | None = None  # for a run of one prompt: what was read before

    @classmethod
    def of(
        cls,
        model: FusedModel,
        systems: Sequence[str],
        store: Store | None,
        sources: Collection[str] | None,
        options: GenerationOptions,
        cancel: Cancel | None,
        special: bool = False,
        ranked: int | None = None,
        prefix: PrefixCache | None = None,
    ) -> "Call":
        """Return the call; MlpMemError for unavailable systems, sources or forced ids."""
        store = store or model.store
        if not systems:
            names = ", ".join(systems_of(model, store))
            raise MlpMemError(f"systems must name at least one system; choose from {names}")
        parts = set()
        for name in (*systems, *(sources or ())):
            model.check_system(name, store)
            parts |= {*PARTS[name]}
        check_ids(model.decoder, options.forced, "forced")
        if cancel is not None and not hasattr(cancel, "is_set"):
            raise MlpMemError(
                f"cancel must have is_set(), as a threading.Event does; got {cancel!r}"
            )
        return cls(model, store, frozenset(parts), options, cancel, special, ranked, prefix)

    def read(self, prompt: str | Sequence[int]) -> Prompt:
        """Return a prompt as text and ids; MlpMemError if it is empty or too long."""
        decoder = self.model.decoder
        ids = check_prompt(decoder, prompt, self.options.max_new_tokens, self.special)
        return Prompt(prompt if isinstance(prompt, str) else decoder.spelled(ids), ids)
