"""Retrieval before the prompt: BM25 over the corpus's passages, with the best ones put in front.

An inner system answers, with or without a memory. Only retrieval needs the package bm25s.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from mlpmem.engine.call import Event
from mlpmem.engine.fused import Sources
from mlpmem.engine.settings import GenerationOptions
from mlpmem.engine.systems import System, last_trace, named, next_log_probs
from mlpmem.engine.trace import Trace
from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.model.prompts import check_prompt
from mlpmem.model.tokenizer import PARTED, encode_text, passage_text
from mlpmem.retrieval.text_search import Passages

LAYOUTS = ("turns", "text")  # passages with the corpus's own ends, or joined to one text


class Rag:
    """A system that puts the best passages before every prompt."""

    def __init__(
        self,
        inner: System,
        passages: Passages,
        count: int = 1,
        layout: str | None = None,
        name: str = "rag",
    ) -> None:
        """Put `count` passages before a prompt, the best one last; see LAYOUTS.

        The default layout is "text" for plain text and "turns" for an atlas's passages.
        """
        layout = layout or passages.layout
        if layout not in LAYOUTS or count < 1:
            raise MlpMemError(
                f"rag: layout must be one of {', '.join(LAYOUTS)} and count 1 or more; got "
                f"{layout!r} and {count}"
            )
        self.inner, self.passages, self.count, self.layout = inner, passages, count, layout
        self.name, self.label = name, f"{inner.label} + retrieval"

    @property
    def decoder(self) -> Decoder:
        """Return the inner system's decoder."""
        return self.inner.decoder

    @property
    def bytes(self) -> int:
        """Return the bytes of the inner system and the passages."""
        return self.inner.bytes + self.passages.bytes

    @property
    def seconds(self) -> float:
        """Return the seconds of the inner system and the index."""
        return self.inner.seconds + self.passages.seconds

    def context(self, ids: Sequence[int], room: int) -> list[int]:
        """Return passages and prompt; passages that leave no `room` for more tokens are dropped.

        The prompt's BOS comes first, once.
        """
        ids = self.inner.context(ids, room)
        bos = [i for i in ids[:1] if i == self.decoder.tokenizer.bos_token_id]
        question = list(ids[len(bos) :])
        left = self.decoder.max_positions - room - len(ids)
        before: list[int] = []
        for passage in self.passages.search(self.decoder.decode(question), self.count):
            text = self._laid_out(passage, bos)
            if len(text) > left:
                break
            before, left = text + before, left - len(text)
        return bos + before + question

    def _laid_out(self, passage: int, bos: list[int]) -> list[int]:
        """Return a passage's ids in this layout, without BOS."""
        if self.layout == "turns":
            ids = list(self.passages.ids[passage])
            return ids[len(bos) :] if ids[: len(bos)] == bos else ids
        return self.passages.plain(passage) + encode_text(self.decoder.tokenizer, " ")

    @property
    def reads_evidence(self) -> bool:
        """Return whether the inner system's mix needs evidence."""
        return self.inner.reads_evidence

    def sources(self, hidden: Tensor, logits: Tensor) -> Sources:
        """Return the inner system's sources."""
        return self.inner.sources(hidden, logits)

    def gaps(self, sources: Sources, tokens: Tensor) -> Tensor:
        """Return the inner system's evidence (R,) of tokens (R,)."""
        return self.inner.gaps(sources, tokens)

    def mix(self, sources: Sources, evidence: Tensor | None = None) -> Tensor:
        """Return the inner system's log-probs (R, V)."""
        return self.inner.mix(sources, evidence)

    def log_probs(self, ids: Sequence[int], last: int = 1) -> Tensor:
        """Return log-probs (last, V) after each of the last positions, with passages before ids."""
        return next_log_probs(self, ids, last)

    def stream(self, prompt: str | Sequence[int], **options) -> Iterator[Event]:
        """Yield the inner system's Events; the trace's prompt is all that was read.

        Its passages are separated by PARTED, and settings["asked"] is the prompt after them. Its
        cost includes the time of the search and the bytes of the index.
        """
        start = time.perf_counter()
        room = options.get("max_new_tokens", GenerationOptions.max_new_tokens)
        special = options.pop("special", False)
        ids = check_prompt(self.decoder, prompt, room, special)
        read = self.context(ids, room)
        ms = 1000 * (time.perf_counter() - start)
        cost = {"retrieval_ms": ms, "passages_bytes": self.passages.bytes}
        for event in self.inner.stream(read, **options):
            (value,) = event.values.values()
            if event.kind == "done":
                text, question = (
                    passage_text(self.decoder, i).removeprefix(PARTED) for i in (read, ids)
                )
                settings = {**value.settings, "asked": question}
                trace = replace(value, prompt=text, settings=settings, cost={**value.cost, **cost})
                value = named(trace, self)
            yield Event(event.kind, {self.name: value})

    def generate(self, prompt: str | Sequence[int], **options) -> Trace:
        """Return the Trace of an answer; options as of Model.stream."""
        return last_trace(self.stream(prompt, **options))
