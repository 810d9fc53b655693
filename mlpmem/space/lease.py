"""A model whose columns run under a lease of a GPU, and everything else on the CPU.

A lease is a decorator of a generator, as ZeroGPU's `spaces.GPU` is: what it wraps may run in
another process, so only plain values go in and come out, and the parts are placed beforehand.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mlpmem.api import Model, Prompt
from mlpmem.engine.generation import LMBDAS, Cancel, Event
from mlpmem.engine.trace import Trace

Lease = Callable[[Callable[..., Iterator[Event]]], Callable[..., Iterator[Event]]]
SETTLE = 5.0  # seconds that a lease takes to begin
TOKEN = 0.05  # seconds a token


def seconds(method: str, prompt: Any, options: dict[str, Any]) -> float:
    """Return for how long a run needs its lease at most; scrubbing writes its text twice."""
    tokens = options.get("max_new_tokens", 32) * (2 if method == "stream_scrub" else 1)
    return SETTLE + TOKEN * tokens


class LeasedModel(Model):
    """A model on the CPU with a placed twin of itself that does what takes a GPU.

    A visitor's own datastore is never placed: a run that searches one stays on the CPU. The lease
    ends when the iterator does, or is closed.
    """

    def __init__(self, model: Model, placed: Model, lease: Lease) -> None:
        """Take over model's parts; placed answers under the lease."""
        parts = model.decoder, model.memory, model.settings, model.name, model.routers
        super().__init__(*parts, model.questions)
        self._store, self._placed, self._decorate = model.store, placed, lease

        def run(method: str, prompt: Any, options: dict[str, Any]) -> Iterator[Event]:
            yield from getattr(placed, method)(prompt, **options)

        self._lease = lease(run)

    def stream(self, prompt: Prompt, systems: Sequence[str] | None = None, **options: Any):
        """Return what Model.stream returns."""
        begun = super().stream(prompt, systems, **options)
        return self._leased(begun, "stream", prompt, {**options, "systems": systems})

    def stream_scrub(
        self,
        prompt: Prompt,
        system: str | None = None,
        lmbdas: Sequence[float] = LMBDAS,
        **options: Any,
    ):
        """Return what Model.stream_scrub returns."""
        begun = super().stream_scrub(prompt, system, lmbdas, **options)
        asked = {**options, "system": system, "lmbdas": lmbdas}
        return self._leased(begun, "stream_scrub", prompt, asked)

    def only(self, system: str) -> "LeasedModel":
        """Return a leased model that computes only this system."""
        return LeasedModel(super().only(system), self._placed.only(system), self._decorate)

    def _compare_batch(
        self, prompts: Sequence[Prompt], systems: Sequence[str] | None, asked: dict[str, Any]
    ) -> list[dict[str, Trace]]:
        """Return the traces of every prompt, under a lease each."""
        return [self.compare(prompt, systems, **asked) for prompt in prompts]

    def _leased(
        self, begun: Iterator[Event], method: str, prompt: Prompt, options: dict[str, Any]
    ) -> Iterator[Event]:
        """Return a run's events under a lease; `begun` is the same run here, already checked."""
        cancel = options.pop("cancel", None)
        if options.get("store") is not None:
            return begun
        begun.close()
        return self._watched(self._lease(method, prompt, options), cancel)

    @staticmethod
    def _watched(events: Iterator[Event], cancel: Cancel | None) -> Iterator[Event]:
        """Yield events until it is cancelled, which ends without traces and ends the lease."""
        for event in events:
            yield event
            if cancel is not None and cancel.is_set():
                return
