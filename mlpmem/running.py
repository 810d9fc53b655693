"""What a generation keeps while it runs: its columns, its clock, and the events it tells."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from mlpmem.engine.fused import FusedModel
from mlpmem.engine.trace import AUTO, PARTS, Step
from mlpmem.pieces import TextStream
from mlpmem.sources import Store

TIMED = {"memory": "memory", "knn": "search"}  # parts, as Sources.seconds calls them


@dataclass(frozen=True)
class Event:
    """Something that happened: "step" with {name: Step}, last "done" with {name: Trace}.

    A column's name is its system in a comparison, its lambda where lambda is scrubbed.
    """

    kind: str
    values: Mapping[Any, Any]


@dataclass
class Column:
    """What one system has written at one lambda so far, within one call."""

    name: str | float
    system: str
    lmbda: float | str
    row: int = 0  # of the batch
    steps: list[Step] = field(default_factory=list)
    text: TextStream = field(default_factory=TextStream)
    finish: str = ""


@dataclass
class Clock:
    """Milliseconds a token by part; a batch's time is shared out over its rows."""

    prefill_ms: float = 0.0
    read: Mapping[str, float] = field(default_factory=dict)  # seconds a source read the prompt for
    parts: dict[str, list[float]] = field(default_factory=dict)

    def add(self, part: str, seconds: float, rows: int) -> None:
        """Note what a part took for some rows."""
        self.parts.setdefault(f"{part}_ms", []).append(1000 * seconds / rows)

    def cost(self, model: FusedModel, store: Store | None, column: Column) -> dict[str, float]:
        """Return medians in ms and sizes in bytes; a lone token's decoder time is the prefill.

        A routed column's evidence_ms are those in which its sources read the prompt.
        """
        found = {"decoder_ms": self.prefill_ms} | {p: median(ms) for p, ms in self.parts.items()}
        sizes = {"decoder_bytes": model.decoder.bytes}
        if model.memory is not None:
            sizes["memory_bytes"] = model.memory.bytes
        if store is not None:
            sizes["datastore_bytes"] = store.bytes
        if column.lmbda == AUTO and self.read:
            asked = (self.read.get(TIMED[part], 0.0) for part in PARTS[column.system])
            found["evidence_ms"] = 1000 * sum(asked)
        return {"prefill_ms": self.prefill_ms, **found, **sizes}
