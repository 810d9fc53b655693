"""Retrieval before the prompt: BM25 over the corpus's passages, the best ones put in front.

The inner system does the rest, so it may be a decoder alone or one with a memory. bm25s is needed
here alone.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from mlpmem.engine.fused import Sources
from mlpmem.engine.generation import Event
from mlpmem.engine.settings import GenerationOptions
from mlpmem.engine.systems import System, last_trace, named, next_log_probs
from mlpmem.engine.trace import Trace
from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.model.prompts import check_prompt
from mlpmem.model.tokenizer import PARTED, encode_text, passage_text
from mlpmem.retrieval.text_search import Passages

LAYOUTS = ("turns", "text")  # passages ended as the corpus ends them, or running on as one text


class Rag:
    """A system that reads the best passages before every prompt."""

    def __init__(
        self,
        inner: System,
        passages: Passages,
        count: int = 1,
        layout: str | None = None,
        name: str = "rag",
    ) -> None:
        """Put `count` passages before a prompt, the best one last; see LAYOUTS.

        Without a layout, running text runs on and an atlas's passages are turns.
        """
        layout = layout or passages.layout
        if layout not in LAYOUTS or count < 1:
            raise MlpMemError(
                f"rag: layout {layout!r} must be one of {', '.join(LAYOUTS)}, and count {count} "
                "1 or more"
            )
        self.inner, self.passages, self.count, self.layout = inner, passages, count, layout
        self.name, self.label = name, f"{inner.label} + retrieval"

    @property
    def decoder(self) -> Decoder:
        """Return the inner system's decoder."""
        return self.inner.decoder

    @property
    def bytes(self) -> int:
        """Return the inner system's bytes and the passages'."""
        return self.inner.bytes + self.passages.bytes

    @property
    def seconds(self) -> float:
        """Return the inner system's seconds and the index's."""
        return self.inner.seconds + self.passages.seconds

    def context(self, ids: Sequence[int], room: int) -> list[int]:
        """Return passages and prompt, with fewer passages where not all fit with `room` more.

        The prompt's BOS stands before everything, once.
        """
        ids = self.inner.context(ids, room)
        bos = [i for i in ids[:1] if i == self.decoder.tokenizer.bos_token_id]
        asked = list(ids[len(bos) :])
        left = self.decoder.max_positions - room - len(ids)
        before: list[int] = []
        for passage in self.passages.search(self.decoder.decode(asked), self.count):
            text = self._laid_out(passage, bos)
            if len(text) > left:
                break
            before, left = text + before, left - len(text)
        return bos + before + asked

    def _laid_out(self, passage: int, bos: list[int]) -> list[int]:
        """Return a passage's ids as they stand before a prompt."""
        if self.layout == "turns":
            ids = list(self.passages.ids[passage])
            return ids[len(bos) :] if ids[: len(bos)] == bos else ids
        return self.passages.plain(passage) + encode_text(self.decoder.tokenizer, " ")

    @property
    def routed(self) -> bool:
        """Return whether the inner system's mix needs evidence."""
        return self.inner.routed

    def sources(self, hidden: Tensor, logits: Tensor) -> Sources:
        """Return what the inner system's sources say."""
        return self.inner.sources(hidden, logits)

    def gaps(self, sources: Sources, tokens: Tensor) -> Tensor:
        """Return what tokens (R,) are worth to the inner system as evidence, (R,)."""
        return self.inner.gaps(sources, tokens)

    def mix(self, sources: Sources, evidence: Tensor | None = None) -> Tensor:
        """Return the inner system's log-probs (R, V)."""
        return self.inner.mix(sources, evidence)

    def log_probs(self, ids: Sequence[int], last: int = 1) -> Tensor:
        """Return log-probs (last, V) after each of the last positions, passages before ids."""
        return next_log_probs(self, ids, last)

    def stream(self, prompt: str | Sequence[int], **options) -> Iterator[Event]:
        """Yield the inner system's Events; the trace's prompt is what was read.

        PARTED stands in it between passages, and settings["asked"] is what stands after them; its
        cost has the time of finding them, and the index.
        """
        began = time.perf_counter()
        room = options.get("max_new_tokens", GenerationOptions.max_new_tokens)
        special = options.pop("special", False)
        ids = check_prompt(self.decoder, prompt, room, special)
        read = self.context(ids, room)
        took = 1000 * (time.perf_counter() - began)
        cost = {"retrieval_ms": took, "passages_bytes": self.passages.bytes}
        for event in self.inner.stream(read, **options):
            (value,) = event.values.values()
            if event.kind == "done":
                text, asked = (
                    passage_text(self.decoder, i).removeprefix(PARTED) for i in (read, ids)
                )
                settings = {**value.settings, "asked": asked}
                whole = replace(value, prompt=text, settings=settings, cost={**value.cost, **cost})
                value = named(whole, self)
            yield Event(event.kind, {self.name: value})

    def generate(self, prompt: str | Sequence[int], **options) -> Trace:
        """Return the last of the stream's traces."""
        return last_trace(self.stream(prompt, **options))
