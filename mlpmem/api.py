"""Model, the public API: texts by every system, the score of a text, the sources behind a token.

Every call names its parameters, and the engine computes. Letters: T tokens, V vocabulary.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast, overload

from torch import Tensor

from mlpmem.engine import batches, generation, scoring
from mlpmem.engine.call import Cancel, Event, last_values
from mlpmem.engine.fused import FusedModel
from mlpmem.engine.generation import LMBDAS
from mlpmem.engine.prefix import PrefixCache
from mlpmem.engine.router import Router
from mlpmem.engine.scoring import Score
from mlpmem.engine.settings import GenerationOptions, Settings, default_settings
from mlpmem.engine.text_gate import fit_gate, reference_states
from mlpmem.engine.trace import PARTS, RankedToken, Trace
from mlpmem.errors import MlpMemError
from mlpmem.model.memory import Memory
from mlpmem.model.prompts import Chat, chat_question, fitted_chat
from mlpmem.model.tokenizer import PARTED, passage_text
from mlpmem.retrieval import saved
from mlpmem.retrieval.datastore import Store, open_texts, store_texts
from mlpmem.retrieval.own.sentences import answer_head, form_ids
from mlpmem.retrieval.text_search import TextIndex

Lmbda = float | str  # from 0 to 1, or "auto": a router chooses it for every token
Prompt = str | Sequence[int]  # a text, or its token ids


class Model(FusedModel):
    """A decoder with its memory and datastore; `systems` lists what can be asked.

    Parameters mean the same in every call:

    - prompt: a text or token ids. A list of prompts is a batch and gives a list of results.
    - system, systems: names in `systems`, or "mixed". system=None is the memory, or the best
      system there is; systems=None is all of them.
    - lmbda: the weight of memory or datastore. None is the model's own, "auto" the router's.
    - max_new_tokens: the largest number of tokens. temperature: 0 takes the most probable token.
      top_k, top_p and min_p limit what is sampled; do_sample=False is temperature 0.
    - repetition_penalty: a factor on the log-probs of tokens read or written.
    - stop (or stop_strings): a text or texts that end the answer.
    - seed: of the random numbers. forced: ids of the first tokens, given rather than chosen.
    - sources: of "memory", "knn", "mixed"; steps hold these and what the systems mix.
    - store: a datastore that replaces the model's own in this call; see `store_texts`.
    - cancel: an object with is_set(), such as a threading.Event, checked before every token.
    - prefix: a PrefixCache keeps what was read for the next call, as of a chat's earlier turns.
    - special: True reads control tokens in a prompt, such as </s>, as control tokens.
    """

    @overload
    def generate(self, prompt: Prompt, system: str | None = None, **options: Any) -> Trace: ...

    @overload
    def generate(
        self, prompt: Sequence[Prompt], system: str | None = None, **options: Any
    ) -> list[Trace]: ...

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        system: str | None = None,
        *,
        lmbda: Lmbda | Mapping[str, Lmbda] | None = None,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        do_sample: bool | None = None,
        seed: int = 0,
        stop: str | Sequence[str] | None = None,
        forced: Sequence[int] = (),
        sources: Collection[str] | None = None,
        store: Store | None = None,
        cancel: Cancel | None = None,
        special: bool = False,
        prefix: PrefixCache | None = None,
        **unknown: Any,
    ) -> Trace | list[Trace]:
        """Return what one system writes (default: the memory)."""
        options = _options(locals())
        name = self.check_system(system, store or self.store)
        traces = self.compare(prompt, [name], **options)
        if isinstance(traces, list):
            return [_trace_of(name, by_system) for by_system in traces]
        return _trace_of(name, traces)

    @overload
    def compare(
        self, prompt: Prompt, systems: Sequence[str] | None = None, **options: Any
    ) -> dict[str, Trace]: ...

    @overload
    def compare(
        self, prompt: Sequence[Prompt], systems: Sequence[str] | None = None, **options: Any
    ) -> list[dict[str, Trace]]: ...

    def compare(
        self,
        prompt: Prompt | Sequence[Prompt],
        systems: Sequence[str] | None = None,
        *,
        lmbda: Lmbda | Mapping[str, Lmbda] | None = None,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        do_sample: bool | None = None,
        seed: int = 0,
        stop: str | Sequence[str] | None = None,
        forced: Sequence[int] = (),
        sources: Collection[str] | None = None,
        store: Store | None = None,
        cancel: Cancel | None = None,
        special: bool = False,
        prefix: PrefixCache | None = None,
        **unknown: Any,
    ) -> dict[str, Trace] | list[dict[str, Trace]]:
        """Return what several systems write, by name: one batch over one prefill."""
        options = _options(locals())
        if is_batch(prompt):
            if options.pop("prefix") is not None:
                raise MlpMemError("prefix is for one prompt; leave it out, or ask one at a time")
            return self._compare_batch(cast(Sequence[Prompt], prompt), systems, options)
        return last_values(self.stream(cast(Prompt, prompt), systems, **options))

    def _compare_batch(
        self, prompts: Sequence[Prompt], systems: Sequence[str] | None, options: dict[str, Any]
    ) -> list[dict[str, Trace]]:
        """Return the traces of every prompt; a leased model overrides this."""
        return batches.compare_batch(self, prompts, systems, **_engine_arguments(options))

    def stream(
        self,
        prompt: Prompt,
        systems: Sequence[str] | None = None,
        *,
        lmbda: Lmbda | Mapping[str, Lmbda] | None = None,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        do_sample: bool | None = None,
        seed: int = 0,
        stop: str | Sequence[str] | None = None,
        forced: Sequence[int] = (),
        sources: Collection[str] | None = None,
        store: Store | None = None,
        cancel: Cancel | None = None,
        special: bool = False,
        prefix: PrefixCache | None = None,
        **unknown: Any,
    ) -> Iterator[Event]:
        """Return Events: one "step" per token with {system: Step}, then "done" with the traces."""
        return generation.compare(self, prompt, systems, **_engine_arguments(_options(locals())))

    def stream_batch(
        self,
        prompts: Sequence[Prompt],
        systems: Sequence[str] | None = None,
        *,
        samples: int = 1,
        ranked: int | None = None,
        lmbda: Lmbda | Mapping[str, Lmbda] | None = None,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        do_sample: bool | None = None,
        seed: int = 0,
        stop: str | Sequence[str] | None = None,
        forced: Sequence[int] = (),
        sources: Collection[str] | None = None,
        store: Store | None = None,
        cancel: Cancel | None = None,
        special: bool = False,
        prefix: PrefixCache | None = None,
        **unknown: Any,
    ) -> Iterator[Event]:
        """Return Events as `stream` does, by (prompt's index, system, sample).

        Sample s draws as seed + s does. With `ranked`, every step has the log-probs of so many of
        the mix's likeliest tokens.
        """
        options = _engine_arguments(_options(locals()))
        return batches.stream_batch(
            self, prompts, systems, samples=samples, ranked=ranked, **options
        )

    def scrub(
        self,
        prompt: Prompt,
        system: str | None = None,
        lmbdas: Sequence[float] = LMBDAS,
        *,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        do_sample: bool | None = None,
        seed: int = 0,
        stop: str | Sequence[str] | None = None,
        forced: Sequence[int] = (),
        sources: Collection[str] | None = None,
        store: Store | None = None,
        cancel: Cancel | None = None,
        special: bool = False,
        **unknown: Any,
    ) -> dict[float, Trace]:
        """Return what one system (default: the memory) writes at every lambda."""
        return last_values(self.stream_scrub(prompt, system, lmbdas, **_options(locals())))

    def stream_scrub(
        self,
        prompt: Prompt,
        system: str | None = None,
        lmbdas: Sequence[float] = LMBDAS,
        *,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        do_sample: bool | None = None,
        seed: int = 0,
        stop: str | Sequence[str] | None = None,
        forced: Sequence[int] = (),
        sources: Collection[str] | None = None,
        store: Store | None = None,
        cancel: Cancel | None = None,
        special: bool = False,
        **unknown: Any,
    ) -> Iterator[Event]:
        """Return Events as `stream` does, by lambda instead of system."""
        options = _options(locals())
        return generation.scrub(self, prompt, system, lmbdas, **_engine_arguments(options))

    def chat(
        self,
        turns: Chat,
        system: str | None = None,
        *,
        lmbda: Lmbda | Mapping[str, Lmbda] | None = None,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        do_sample: bool | None = None,
        seed: int = 0,
        stop: str | Sequence[str] | None = None,
        forced: Sequence[int] = (),
        sources: Collection[str] | None = None,
        store: Store | None = None,
        cancel: Cancel | None = None,
        special: bool = False,
        prefix: PrefixCache | None = None,
        **unknown: Any,
    ) -> Trace:
        """Return the answer to the last turn of a chat; the oldest turns are cut if all do not fit.

        A chat is a text, (question, answer) pairs, or messages with role and content.
        """
        return self.generate(self.chat_ids(turns, max_new_tokens), system, **_options(locals()))

    def chat_ids(self, turns: Chat, max_new_tokens: int = 32, typed: bool = False) -> list[int]:
        """Return the token ids that `chat` continues: the turns in the decoder's own format.

        With typed, a decoder trained on "Question: ... Answer:" reads the turns as lines instead.
        """
        return self.fitted_chat(turns, max_new_tokens, typed)[0]

    def fitted_chat(
        self, turns: Chat, max_new_tokens: int = 32, typed: bool = False
    ) -> tuple[list[int], int]:
        """Return (what `chat_ids` returns, the number of oldest turns that do not fit)."""
        room = self.decoder.max_positions - max_new_tokens
        return fitted_chat(self.decoder, turns, room, self.questions and not typed)

    def chat_question(self, question: str) -> str:
        """Return a chat's question as it is asked: in the form the decoder was trained on."""
        return chat_question(self.decoder, question, self.questions)

    @overload
    def score(self, text: Prompt, store: Store | None = None) -> Score: ...

    @overload
    def score(self, text: Sequence[Prompt], store: Store | None = None) -> list[Score]: ...

    def score(
        self, text: Prompt | Sequence[Prompt], store: Store | None = None
    ) -> Score | list[Score]:
        """Return the nll of every token of a text by every source; a list gives a list."""
        if is_batch(text):
            return [scoring.score(self, cast(Prompt, each), store) for each in text]
        return scoring.score(self, cast(Prompt, text), store)

    def ranked(
        self,
        text: Prompt,
        system: str | None = None,
        most: int = 0,
        *,
        lmbda: Lmbda | None = None,
        sources: Collection[str] | None = None,
        store: Store | None = None,
        cancel: Cancel | None = None,
    ) -> list[tuple[float, list[RankedToken]]]:
        """Return per token but the first: lambda, and the token with the `most` likeliest ones.

        A token has its log-probs by every source; "fused" is that of the system's mix.
        """
        options: dict[str, Any] = {"sources": sources, "store": store, "cancel": cancel}
        return scoring.ranked(self, text, system, lmbda=lmbda, most=most, **options)

    def inspect(
        self,
        text: Prompt,
        system: str | None = None,
        *,
        lmbda: Lmbda | None = None,
        store: Store | None = None,
        cancel: Cancel | None = None,
        special: bool = False,
    ) -> Iterator[Event]:
        """Return Events of a given text or its token ids: "progress", then "done" with its Trace.

        With special, names of control tokens in the text become control tokens.
        """
        call = {"lmbda": lmbda, "store": store, "cancel": cancel, "special": special}
        return scoring.inspect(self, text, system, **call)

    def probe(
        self, ids: Sequence[int], text: str, store: Store | None = None
    ) -> list[dict[str, Any]]:
        """Return the probability of a named word after ids by every source; see scoring.probe."""
        return scoring.probe(self, ids, text, store)

    def distributions(
        self,
        prompt: Prompt,
        lmbda: Lmbda | None = None,
        system: str | None = None,
        store: Store | None = None,
    ) -> dict[str, Tensor]:
        """Return log-probs (V,) of the next token by every source, and "fused" by the mix."""
        return scoring.distributions(self, prompt, system, lmbda, store)

    def store_texts(
        self,
        titled: Sequence[tuple[str, str]],
        *,
        plain: bool = False,
        progress: Callable[[int, int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Store:
        """Return a store of (title, text) pairs, for the parameter `store` of a call.

        It is searched by state, shared words and order, and a gate fitted to it chooses lambda.
        With plain, it is a kNN-LM's: squared L2 of raw states at a fixed lambda. progress(done,
        total) counts tokens. MlpMemError if stop() returns True.
        """
        reference = None if plain else reference_states(self)
        store = store_texts(
            self.decoder, titled, reference, questions=self.questions, progress=progress, stop=stop
        )
        return store if plain else store._replace(gate=fit_gate(self, store, stop=stop))

    def save_store(self, store: Store, title: str, most: int = saved.MOST) -> bytes:
        """Return a store of own texts as a .zip, to open again; see retrieval/saved.py."""
        head = answer_head(self.decoder, self.questions) if store.texts is not None else ()
        return saved.pack(self.decoder, store.datastore, title, most, head)

    def open_store(
        self,
        source: str | Path,
        *,
        most: int = saved.MOST,
        name: str = "",
        progress: Callable[[int, int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> tuple[str, Store]:
        """Return (title, store) of a saved .zip or its unpacked folder.

        MlpMemError for a store of another decoder, a damaged one, and one with a file of more than
        `most` bytes. name replaces the source's in messages.
        """
        decoder = self.decoder
        heads = [[], answer_head(decoder), answer_head(decoder, questions=True)]
        opened = saved.read(decoder, source, most, name, heads)
        datastore = saved.open_datastore(decoder, opened, progress, stop)
        form = form_ids(decoder, self.questions)
        store = open_texts(decoder, datastore, reference_states(self), form)
        return opened.title, store._replace(gate=fit_gate(self, store, stop=stop))

    def corpus(self, store: Store | None = None) -> TextIndex:
        """Return the texts behind a store, to search and read; MlpMemError without texts."""
        store = store or self.store
        documents = store.datastore.documents if store is not None else self.documents
        if documents is None:
            raise MlpMemError(
                "the datastore is not there yet, so its texts cannot be read; try again later"
            )
        return TextIndex(documents, lambda ids: passage_text(self.decoder, ids).strip(PARTED))

    def only(self, system: str) -> "Model":
        """Return a model that computes only this system; all parts are shared."""
        parts = PARTS[system]
        memory = self.memory if "memory" in parts else None
        store = self.store if "knn" in parts else None
        return self._like(memory, self.settings, self.routers, store)

    def with_memory(self, memory: Memory) -> "Model":
        """Return a model with this decoder and store and another memory, used as its config says.

        This model does not change, so calls under way are not affected.
        """
        settings = default_settings(memory)
        lmbda = {**settings.lmbda, "knn": self.settings.of("knn")}
        return self._like(memory, replace(settings, lmbda=lmbda), {}, self.store)

    def with_taught(self, memory: Memory) -> "Model":
        """Return a model with a taught copy of its memory; settings and routers stay."""
        return self._like(memory, self.settings, self.routers, self.store)

    def _like(
        self,
        memory: Memory | None,
        settings: Settings,
        routers: Mapping[str, Router],
        store: Store | None,
    ) -> "Model":
        """Return a model of this decoder and these parts."""
        model = Model(self.decoder, memory, settings, self.name, routers, self.questions)
        model._store, model.documents = store, self.documents
        return model


def is_batch(prompt: Prompt | Sequence[Prompt]) -> bool:
    """Return whether this is a list of prompts; a text or token ids are one prompt."""
    return (
        not isinstance(prompt, str)
        and isinstance(prompt, Sequence)
        and len(prompt) > 0
        and isinstance(prompt[0], str | Sequence)
    )


def _trace_of(name: str, traces: dict[str, Trace]) -> Trace:
    """Return the trace of a system; MlpMemError if the run ended before there was one."""
    if name not in traces:
        raise MlpMemError("the run was cancelled before its first token; ask again")
    return traces[name]


_OWN = ("self", "prompt", "prompts", "system", "systems", "lmbdas", "turns", "unknown", "samples",
        "ranked", "__class__")  # fmt: skip
_ALIASES = {"stop_strings": "stop"}
_CALL = ("lmbda", "sources", "store", "cancel", "special", "prefix")
_NAMES = {field.name for field in fields(GenerationOptions)} | {*_CALL, *_ALIASES, "do_sample"}


def _options(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the options in a method's locals(); MlpMemError for an unknown name."""
    options = {name: value for name, value in arguments.items() if name not in _OWN}
    for name, value in arguments["unknown"].items():
        if name not in _ALIASES:
            similar = get_close_matches(name, _NAMES, 1, 0.5)
            names = ", ".join(sorted(_NAMES))
            hint = f"did you mean {similar[0]}?" if similar else f"options are {names}"
            raise MlpMemError(f"{name} is not an option of this call; {hint}")
        options[_ALIASES[name]] = value
    return options


def _engine_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Return options as the engine takes them: the call's own, and GenerationOptions."""
    call = {name: options[name] for name in _CALL if name in options}
    sampling = {name: value for name, value in options.items() if name not in _CALL}
    sampling["stop"] = sampling["stop"] or ()
    if sampling.pop("do_sample") is False:
        sampling["temperature"] = 0.0
    return {**call, "options": GenerationOptions(**sampling)}
