"""A model whose columns run on a leased GPU, and everything else on the CPU.

A lease is a decorator of a generator, such as ZeroGPU's `spaces.GPU`. The generator may run in
another process, so its arguments and values are plain, and the parts are placed beforehand.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mlpmem.api import Model, Prompt
from mlpmem.engine.call import Cancel, Event
from mlpmem.engine.generation import LMBDAS
from mlpmem.engine.trace import Trace

Lease = Callable[[Callable[..., Iterator[Event]]], Callable[..., Iterator[Event]]]
SETTLE = 5.0  # seconds until a lease begins
TOKEN = 0.05  # seconds per token


def seconds(method: str, prompt: Any, options: dict[str, Any]) -> float:
    """Return the longest lease that a run needs, in seconds.

    A scrub writes its text twice; the prompts of a batch may all differ in length, so they take
    turns.
    """
    times = len(prompt) if method == "stream_batch" else 2 if method == "stream_scrub" else 1
    return SETTLE + TOKEN * times * options.get("max_new_tokens", 32)


class LeasedModel(Model):
    """A model on the CPU with a copy on the GPU that generates.

    A visitor's own datastore is never placed on the GPU, so a run that searches one stays on the
    CPU. The lease ends when the iterator ends or is closed.
    """

    leased = True  # every run counts against a visitor's quota

    def __init__(self, model: Model, placed: Model, lease: Lease) -> None:
        """Share the parts of `model`; `placed` is its copy on the GPU."""
        parts = model.decoder, model.memory, model.settings, model.name, model.routers
        super().__init__(*parts, model.questions)
        self._store, self._placed, self._decorate = model.store, placed, lease

        def run(method: str, prompt: Any, options: dict[str, Any]) -> Iterator[Event]:
            yield from getattr(placed, method)(prompt, **options)

        self._lease = lease(run)

    def stream(self, prompt: Prompt, systems: Sequence[str] | None = None, **options: Any):
        """Return what Model.stream returns."""
        checked = super().stream(prompt, systems, **options)
        return self._leased(checked, "stream", prompt, {**options, "systems": systems})

    def stream_batch(
        self, prompts: Sequence[Prompt], systems: Sequence[str] | None = None, **options: Any
    ):
        """Return what Model.stream_batch returns."""
        checked = super().stream_batch(prompts, systems, **options)
        return self._leased(checked, "stream_batch", prompts, {**options, "systems": systems})

    def stream_scrub(
        self,
        prompt: Prompt,
        system: str | None = None,
        lmbdas: Sequence[float] = LMBDAS,
        **options: Any,
    ):
        """Return what Model.stream_scrub returns."""
        checked = super().stream_scrub(prompt, system, lmbdas, **options)
        options |= {"system": system, "lmbdas": lmbdas}
        return self._leased(checked, "stream_scrub", prompt, options)

    def only(self, system: str) -> "LeasedModel":
        """Return a leased model that computes only this system."""
        return LeasedModel(super().only(system), self._placed.only(system), self._decorate)

    def _compare_batch(
        self, prompts: Sequence[Prompt], systems: Sequence[str] | None, options: dict[str, Any]
    ) -> list[dict[str, Trace]]:
        """Return the traces of every prompt, with one lease per prompt."""
        return [self.compare(prompt, systems, **options) for prompt in prompts]

    def _leased(
        self, checked: Iterator[Event], method: str, prompt: Prompt, options: dict[str, Any]
    ) -> Iterator[Event]:
        """Return a run's events under a lease; `checked` is the same run on the CPU."""
        cancel = options.pop("cancel", None)
        options.pop("prefix", None)  # what the CPU has read is of no use there
        if options.get("store") is not None:
            return checked
        checked.close()
        return self._watched(self._lease(method, prompt, options), cancel)

    @staticmethod
    def _watched(events: Iterator[Event], cancel: Cancel | None) -> Iterator[Event]:
        """Yield events; cancelling ends the run without traces, and the lease."""
        for event in events:
            yield event
            if cancel is not None and cancel.is_set():
                return
