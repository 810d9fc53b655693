"""A model whose columns run under a lease of a GPU, and everything else on the CPU.

A lease is a decorator of a generator, as ZeroGPU's `spaces.GPU` is: what it wraps may run in
another process, so only plain values go in and come out, and the parts are placed beforehand.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mlpmem.engine.fused import FusedModel
from mlpmem.engine.generation import Event

Lease = Callable[[Callable[..., Iterator[Event]]], Callable[..., Iterator[Event]]]
SETTLE = 5.0  # seconds that a lease takes to begin
TOKEN = 0.05  # seconds a token


def seconds(method: str, prompt: Any, options: dict[str, Any]) -> float:
    """Return for how long a run needs its lease at most; scrubbing writes its text twice."""
    tokens = options.get("max_new_tokens", 32) * (2 if method == "scrub" else 1)
    return SETTLE + TOKEN * tokens


class LeasedModel(FusedModel):
    """A model on the CPU with a placed twin of itself that does what takes a GPU.

    A visitor's own datastore is never placed: a run that searches one stays on the CPU. The lease
    ends when the iterator does, or is closed.
    """

    def __init__(self, model: FusedModel, placed: FusedModel, lease: Lease) -> None:
        """Take over model's parts; placed answers under the lease."""
        super().__init__(model.decoder, model.memory, model.settings, model.name, model.routers)
        self._store = model.store

        def run(method: str, prompt: Any, options: dict[str, Any]) -> Iterator[Event]:
            yield from getattr(placed, method)(prompt, stream=True, **options)

        self._lease = lease(run)

    def compare(self, prompt: str | Sequence[int], systems: Sequence[str] | None = None, **options):
        """Return what FusedModel.compare returns."""
        return self._leased("compare", prompt, {**options, "systems": systems})

    def scrub(self, prompt: str | Sequence[int], system: str | None = None, **options):
        """Return what FusedModel.scrub returns."""
        return self._leased("scrub", prompt, {**options, "system": system})

    def _leased(self, method: str, prompt: Any, options: dict[str, Any]):
        """Return events, or traces without stream; checked here, before anything is leased."""
        begun = getattr(super(), method)(prompt, **{**options, "stream": True})
        stream, stop = options.pop("stream", False), options.pop("stop", None)
        if options.get("store") is None:
            begun.close()
            begun = self._watched(self._lease(method, prompt, options), stop)
        if stream:
            return begun
        *_, done = begun
        return dict(done.values) if done.kind == "done" else {}

    @staticmethod
    def _watched(events: Iterator[Event], stop: Any) -> Iterator[Event]:
        """Yield events until stop is set; a stop ends without traces, and gives the lease back."""
        for event in events:
            yield event
            if stop is not None and stop.is_set():
                return
