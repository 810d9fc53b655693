"""Generation as an iterator of steps: several writers decoded as one batch over one prefill.

A writer is a system at one lambda after one prompt. A batch row is a distinct history, not a
writer: writers that have written the same so far share their row of the decoder, the memory and
the search, and part when they choose differently. The engine knows token ids; text is only for
what is kept. No value of a call outlives it.
"""

import time
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mlpmem.engine.distributions import interpolate, repetition_penalised, sample
from mlpmem.engine.fused import FusedModel, Sources, systems_of
from mlpmem.engine.router import Evidence, gaps, reached, read_prompt
from mlpmem.engine.settings import GenerationOptions, check_lmbda, lambda_grid
from mlpmem.engine.steps import positions_of
from mlpmem.engine.trace import AUTO, PARTS, Step, Trace
from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder, DecoderOutput
from mlpmem.model.prompts import check_ids, check_prompt
from mlpmem.model.tokenizer import TextStream
from mlpmem.retrieval.datastore import Store

TIMED = {"memory": "memory", "knn": "search"}  # parts, as Sources.seconds calls them
LMBDAS = lambda_grid(10)
GREEDY = GenerationOptions()


class Cancel(Protocol):
    """Whatever can say that a run is to end, such as a threading.Event."""

    def is_set(self) -> bool:
        """Return whether the run is to end."""


@dataclass(frozen=True)
class Event:
    """Something that happened: "step" with {name: Step}, last "done" with {name: Trace}.

    A writer's name is its system in a comparison, its lambda where lambda is scrubbed.
    """

    kind: str
    values: Mapping[Any, Any]


class Prompt(NamedTuple):
    """What is continued."""

    text: str
    ids: list[int]


@dataclass
class Writer:
    """What one system has written at one lambda so far, within one call."""

    name: Hashable
    system: str
    lmbda: float | str
    prompt: Prompt
    row: int = 0  # of the batch
    steps: list[Step] = field(default_factory=list)
    text: TextStream = field(default_factory=TextStream)
    finish: str = ""


@dataclass
class Clock:
    """Milliseconds per token by part; a batch's time is shared out over its rows."""

    prefill_ms: float = 0.0
    read: Mapping[str, float] = field(default_factory=dict)  # seconds a source read the prompt for
    parts: dict[str, list[float]] = field(default_factory=dict)

    def add(self, part: str, seconds: float, rows: int) -> None:
        """Note what a part took for some rows."""
        self.parts.setdefault(f"{part}_ms", []).append(1000 * seconds / rows)

    def cost(self, call: "Call", writer: Writer) -> dict[str, float]:
        """Return medians in ms and sizes in bytes; a lone token's decoder time is the prefill.

        A routed writer's evidence_ms are those in which its sources read the prompt.
        """
        found = {"decoder_ms": self.prefill_ms} | {p: median(ms) for p, ms in self.parts.items()}
        sizes = {"decoder_bytes": call.model.decoder.bytes}
        if call.model.memory is not None and "memory" in call.parts:
            sizes["memory_bytes"] = call.model.memory.bytes
        if call.store is not None and "knn" in call.parts:
            sizes["datastore_bytes"] = call.store.bytes
        if writer.lmbda == AUTO and self.read:
            asked = (self.read.get(TIMED[part], 0.0) for part in PARTS[writer.system])
            found["evidence_ms"] = 1000 * sum(asked)
        return {"prefill_ms": self.prefill_ms, **found, **sizes}


@dataclass(frozen=True)
class Call:
    """What a call asks for, checked: it does not change while tokens are written."""

    model: FusedModel
    store: Store | None
    parts: Collection[str]  # sources that are computed beside "lm"
    options: GenerationOptions
    cancel: Cancel | None
    special: bool = False  # whether control tokens that a prompt spells are read as such

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
    ) -> "Call":
        """Return the call; MlpMemError for systems, sources or forced ids that are not there."""
        store = store or model.store
        if not systems:
            there = ", ".join(systems_of(model, store))
            raise MlpMemError(f"no system is asked for; choose from {there}")
        parts = set()
        for name in (*systems, *(sources or ())):
            model.check_system(name, store)
            parts |= {*PARTS[name]}
        check_ids(model.decoder, options.forced, "forced")
        if cancel is not None and not hasattr(cancel, "is_set"):
            raise MlpMemError(
                f"cancel is {cancel!r}; it must have is_set(), as a threading.Event does"
            )
        return cls(model, store, frozenset(parts), options, cancel, special)

    def read(self, prompt: str | Sequence[int]) -> Prompt:
        """Return a prompt as text and ids; MlpMemError where it is empty or too long."""
        decoder = self.model.decoder
        ids = check_prompt(decoder, prompt, self.options.max_new_tokens, self.special)
        return Prompt(prompt if isinstance(prompt, str) else decoder.spelled(ids), ids)


def compare(
    model: FusedModel,
    prompt: str | Sequence[int],
    systems: Sequence[str] | None = None,
    *,
    lmbda: float | str | Mapping[str, float | str] | None = None,
    sources: Collection[str] | None = None,
    store: Store | None = None,
    options: GenerationOptions = GREEDY,
    cancel: Cancel | None = None,
    special: bool = False,
) -> Iterator[Event]:
    """Return the Events of some systems (default: all) after one prompt.

    Everything is checked before anything is computed. cancel.is_set() is asked before every token.
    The same seed gives every system the same random numbers, and the same text as when run alone.
    Forced tokens are steps like the others, but given: forcing a trace's own tokens changes
    nothing. store stands for the model's own in this call. Steps hold the sources that the systems
    mix, and those that `sources` names. With lmbda "auto" a router chooses it for every token.
    """
    store = store or model.store
    systems = _distinct(model, systems, store)
    call = Call.of(model, systems, store, sources, options, cancel, special)
    lmbdas = model.lmbdas(systems, lmbda, store)
    read = call.read(prompt)
    return _run(call, [Writer(system, system, lmbdas[system], read) for system in systems])


def compare_batch(
    model: FusedModel,
    prompts: Sequence[str | Sequence[int]],
    systems: Sequence[str] | None = None,
    *,
    lmbda: float | str | Mapping[str, float | str] | None = None,
    sources: Collection[str] | None = None,
    store: Store | None = None,
    options: GenerationOptions = GREEDY,
    cancel: Cancel | None = None,
    special: bool = False,
) -> list[dict[str, Trace]]:
    """Return {system: Trace} of every prompt, each as `compare` gives it.

    Prompts of equal length are decoded as one batch of at most BATCH_ROWS rows, without padding.
    """
    store = store or model.store
    systems = _distinct(model, systems, store)
    call = Call.of(model, systems, store, sources, options, cancel, special)
    lmbdas = model.lmbdas(systems, lmbda, store)
    read = [call.read(prompt) for prompt in prompts]
    found: list[dict[str, Trace]] = [{} for _ in read]
    for some in _groups(read, max(1, BATCH_ROWS // len(systems))):
        writers = [
            Writer((i, system), system, lmbdas[system], read[i], row)
            for row, i in enumerate(some)
            for system in systems
        ]
        for (i, system), trace in last_values(_run(call, writers)).items():
            found[i][system] = trace
    return found


BATCH_ROWS = 64


def _groups(prompts: Sequence[Prompt], most: int) -> Iterator[list[int]]:
    """Yield indices of prompts of one length, at most so many at a time."""
    lengths: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        lengths.setdefault(len(prompt.ids), []).append(i)
    for some in lengths.values():
        for start in range(0, len(some), most):
            yield some[start : start + most]


def _distinct(model: FusedModel, systems: Sequence[str] | None, store: Store | None) -> list[str]:
    """Return the systems that are asked for, each once; all there are for None."""
    if isinstance(systems, str):
        systems = [systems]
    return list(dict.fromkeys(systems_of(model, store) if systems is None else systems))


def scrub(
    model: FusedModel,
    prompt: str | Sequence[int],
    system: str | None = None,
    lmbdas: Sequence[float] = LMBDAS,
    *,
    sources: Collection[str] | None = None,
    store: Store | None = None,
    options: GenerationOptions = GREEDY,
    cancel: Cancel | None = None,
    special: bool = False,
) -> Iterator[Event]:
    """Return the Events of one system at several lambdas, by lambda.

    Each is what `compare` gives at that lambda; together they cost little more than the texts
    that really differ, because equal histories are computed once.
    """
    store = store or model.store
    system = model.check_system(system, store)
    if system == "lm" or not lmbdas:
        raise MlpMemError(
            "scrub needs a system with a lambda, memory or knn, and one lambda or more; "
            f"it was given {system!r} and {list(lmbdas)}"
        )
    for value in lmbdas:
        check_lmbda(value)
    call = Call.of(model, [system], store, sources, options, cancel, special)
    read = call.read(prompt)
    return _run(call, [Writer(v, system, v, read) for v in dict.fromkeys(map(float, lmbdas))])


def last_values(events: Iterator[Event]) -> dict[Any, Trace]:
    """Return the traces that a run's events end with; none where it ended without any."""
    *_, last = events
    return dict(last.values) if last.kind == "done" else {}


def _run(call: Call, writers: list[Writer]) -> Iterator[Event]:
    """Yield an Event per step and the traces at the end; writers of one row share a prompt.

    Forced tokens are read with the prompt, in one pass; their steps come from its last positions.
    """
    clock, evidence = Clock(), Evidence()
    rng = torch.Generator().manual_seed(call.options.seed)
    live, output = writers, None
    while live:
        if call.cancel is not None and call.cancel.is_set():
            for writer in live:
                writer.finish = "stop"
            break
        begin = time.perf_counter()
        # how many forced tokens follow this step's place
        ahead = len(call.options.forced) - len(live[0].steps)
        if output is None:
            output = _prefill(call, writers, evidence, clock)
        elif ahead < 0:
            output = _decode_one(call.model.decoder, output, live, clock)
        at = -1 - max(0, ahead)
        states = output.states((slice(None), at))
        sources = call.model.sources(*states, call.store, call.parts)
        for part, seconds in sources.seconds.items():
            clock.add(part, seconds, len(output.hidden))
        _choose(call, sources, live, evidence, rng, begin)
        yield Event("step", {writer.name: writer.steps[-1] for writer in live})
        live = [writer for writer in live if not writer.finish]
    yield Event("done", {writer.name: _trace(call, writer, clock) for writer in writers})


def _prefill(call: Call, writers: list[Writer], evidence: Evidence, clock: Clock) -> DecoderOutput:
    """Return the decoder's output after every row's prompt, which becomes evidence."""
    begin = time.perf_counter()
    prompts = {writer.row: writer.prompt for writer in writers}
    forced = list(call.options.forced)
    read = torch.tensor([[*prompts[row].ids, *forced] for row in range(len(prompts))])
    routed = any(writer.lmbda == AUTO for writer in writers)
    count = reached(prompts[0].ids, routed)
    output = call.model.decoder.forward(read, use_cache=True, last=count + 1 + len(forced))
    clock.prefill_ms = 1000 * (time.perf_counter() - begin) / len(prompts)
    for row, prompt in prompts.items():
        columns = {w.name: w.system for w in writers if w.row == row and w.lmbda == AUTO}
        read_prompt(evidence, call.model, output.states(row), prompt.ids, columns, call.store)
    clock.read = {part: s / len(prompts) for part, s in evidence.seconds.items()}
    return output


def _decode_one(
    decoder: Decoder, last: DecoderOutput, live: list[Writer], clock: Clock
) -> DecoderOutput:
    """Return the decoder's output after every writer's last token, one row per distinct history."""
    begin = time.perf_counter()
    histories = dict.fromkeys((writer.row, writer.steps[-1].token_id) for writer in live)
    rows = {history: new for new, history in enumerate(histories)}
    parents = [row for row, _ in rows]
    if parents != list(range(len(last.hidden))):
        last.cache.batch_select_indices(torch.tensor(parents))
    for writer in live:
        writer.row = rows[writer.row, writer.steps[-1].token_id]
    tokens = torch.tensor([[token] for _, token in rows])
    output = decoder.forward(tokens, cache=last.cache, last=1)
    clock.add("decoder", time.perf_counter() - begin, len(rows))
    return output


@torch.inference_mode()
def _choose(
    call: Call,
    sources: Sources,
    live: list[Writer],
    evidence: Evidence,
    rng: torch.Generator,
    begin: float,
) -> None:
    """Add a step to every live writer and mark those that have finished."""
    options, decoder = call.options, call.model.decoder
    fused, weights = _mixed(call.model, sources, live, evidence)  # (writers, V)
    tokens = _sampled(fused, live, options, rng)
    taken = [[] for _ in range(sources.log_probs.shape[1])]
    for writer, token in zip(live, tokens, strict=True):
        taken[writer.row].append(token)
    _take_in(evidence, sources, live, tokens)
    store = call.store if "knn" in call.parts else None
    views = positions_of(decoder, sources, taken, store)
    ms = 1000 * (time.perf_counter() - begin)
    for writer, token, weight in zip(live, tokens, weights, strict=True):
        special = token in decoder.special_ids
        piece = decoder.pieces[token] if special else writer.text.push(decoder.token_bytes[token])
        own = {"lmbda": weight} if writer.lmbda == AUTO else {}
        place = writer.system, weight, len(writer.steps), token
        view = views[writer.row]
        writer.steps.append(view.step(decoder.pieces, *place, text=piece, ms=ms, **own))
        writer.finish = _finish(writer, decoder, options)


def _sampled(
    fused: Tensor, live: list[Writer], options: GenerationOptions, rng: torch.Generator
) -> list[int]:
    """Return every writer's next token: the forced one, or one of the mix (writers, V)."""
    uniform = torch.rand((), generator=rng, dtype=torch.float64)
    if given := options.forced[len(live[0].steps) :][:1]:
        return [*given] * len(live)
    if options.repetition_penalty != 1:
        seen = [[*w.prompt.ids, *(step.token_id for step in w.steps)] for w in live]
        fused = repetition_penalised(fused, seen, options.repetition_penalty)
    limits = options.temperature, options.top_k, options.top_p
    return sample(fused, *limits, uniform, min_p=options.min_p).tolist()


def _finish(writer: Writer, decoder: Decoder, options: GenerationOptions) -> str:
    """Return why a writer has finished with its last step, "" where it has not."""
    step = writer.steps[-1]
    if step.token_id in decoder.eos_ids:
        return "eos"
    if options.stop and any(text in _text(decoder, writer) for text in options.stop):
        return "stop_string"
    return "length" if len(writer.steps) == options.max_new_tokens else ""


def _mixed(
    model: FusedModel, sources: Sources, live: list[Writer], evidence: Evidence
) -> tuple[Tensor, list[float]]:
    """Return the writers' mixes (writers, V) and the lambda of each."""
    rows = [writer.row for writer in live]
    said = {system: sources[system] for system in {writer.system for writer in live}}
    other = torch.stack([said[writer.system][writer.row] for writer in live])
    weights = [_weight(model, sources, writer, evidence) for writer in live]
    lmbdas = torch.tensor(weights, device=other.device)
    return interpolate(sources["lm"][rows], other, lmbdas), weights


def _weight(model: FusedModel, sources: Sources, writer: Writer, evidence: Evidence) -> float:
    """Return a writer's lambda, its own or its router's."""
    if writer.lmbda != AUTO:
        return float(writer.lmbda)
    read = evidence.now([writer.name]).expand(len(sources["lm"]))
    return float(model.weights(sources, writer.system, AUTO, read)[writer.row])


def _take_in(evidence: Evidence, sources: Sources, live: list[Writer], tokens: list[int]) -> None:
    """Let every writer's token count for the lambdas that a router will choose after it."""
    for writer, token in zip(live, tokens, strict=True):
        if writer.lmbda == AUTO:
            row = [writer.row]
            said = sources["lm"][row], sources[writer.system][row]
            evidence.read([writer.name], gaps(*said, torch.tensor([token])))


def _text(decoder: Decoder, writer: Writer) -> str:
    """Return what a writer has written, without special tokens."""
    return decoder.decode([step.token_id for step in writer.steps])


def _trace(call: Call, writer: Writer, clock: Clock) -> Trace:
    """Return what is kept of a writer; its text ends before the first stop string."""
    model, options = call.model, call.options
    used = asdict(model.settings) | _told(options) | ({"special": True} if call.special else {})
    for name in ("lmbda", "auto"):
        used.pop(name)
    text = _text(model.decoder, writer)
    if writer.finish == "stop_string":
        text = text[: min(text.index(stop) for stop in options.stop if stop in text)]
    return Trace(
        system=writer.system,
        prompt=writer.prompt.text,
        prompt_ids=writer.prompt.ids,
        lmbda=writer.lmbda,
        settings=used,
        model={"bundle": model.name, "tokenizer_hash": model.decoder.tokenizer_hash},
        steps=writer.steps,
        finish=writer.finish,
        text=text,
        cost=clock.cost(call, writer),
    )


def _told(options: GenerationOptions) -> dict[str, Any]:
    """Return options as a trace keeps them: those of every run, others where they were set."""
    kept = asdict(options) | {"forced": list(options.forced), "stop": list(options.stop)}
    rare = {"min_p": 0.0, "repetition_penalty": 1.0, "stop": [], "forced": []}
    return {name: value for name, value in kept.items() if rare.get(name, ...) != value}
