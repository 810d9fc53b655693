"""Generation as an iterator of steps: several columns decoded as one batch over one prefill.

A column is a system at one lambda. A batch row is a distinct history, not a column: columns that
have written the same so far share their row of the decoder, the memory and the search, and part
when they choose differently. The engine knows token ids; text is only for what is kept. No value
of a call outlives it.

What a generation keeps while it runs: its columns, its clock, and the events it tells.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor

from mlpmem.engine.distributions import interpolate, sample
from mlpmem.engine.fused import FusedModel, Sources, systems_of
from mlpmem.engine.router import Evidence, gaps, reached, read_prompt
from mlpmem.engine.settings import Options, check_lmbda, lambda_grid
from mlpmem.engine.steps import rows_of
from mlpmem.engine.trace import AUTO, PARTS, Step, Trace
from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder, DecoderOutput
from mlpmem.model.prompts import check_ids, check_prompt
from mlpmem.model.tokenizer import TextStream
from mlpmem.retrieval.datastore import Store

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


SCRUBBED = lambda_grid(10)


def compare(
    model: FusedModel,
    prompt: str | Sequence[int],
    systems: Sequence[str] | None = None,
    *,
    lmbda: float | str | Mapping[str, float | str] | None = None,
    stop: Any = None,
    stream: bool = False,
    store: Store | None = None,
    **options: Any,
) -> dict[str, Trace] | Iterator[Event]:
    """Return {system: Trace}, or with stream an iterator of Events; see Options for the rest.

    Everything is checked before anything is computed. stop.is_set() is asked before every token.
    The same seed gives every system the same luck, and the same text as when run alone. Forced
    tokens are steps like the others, but given: forcing a trace's own tokens changes nothing.
    store stands for the model's own in this call. With lmbda "auto" a router chooses it for every
    token, where the model has one for the system; none for what searches another store.
    """
    store = store or model.store
    systems = list(dict.fromkeys(systems_of(model, store) if systems is None else systems))
    if not systems:
        raise MlpMemError(
            f"no system is asked for; choose from {', '.join(systems_of(model, store))}"
        )
    for system in systems:
        model.check_system(system, store)
    lmbdas = model.lmbdas(systems, lmbda, store)
    columns = [Column(system, system, lmbdas[system]) for system in systems]
    return _begin(model, store, prompt, columns, Options(**options), stop, stream)


def scrub(
    model: FusedModel,
    prompt: str | Sequence[int],
    system: str | None = None,
    lmbdas: Sequence[float] = SCRUBBED,
    *,
    stop: Any = None,
    stream: bool = False,
    store: Store | None = None,
    **options: Any,
) -> dict[float, Trace] | Iterator[Event]:
    """Return {lmbda: Trace} of one system, or with stream an iterator of Events.

    Each is what `compare` gives at that lambda; together they cost little more than the texts
    that really differ, because equal histories are computed once. store stands for the model's own.
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
    columns = [Column(value, system, value) for value in dict.fromkeys(map(float, lmbdas))]
    return _begin(model, store, prompt, columns, Options(**options), stop, stream)


def _begin(
    model: FusedModel,
    store: Store | None,
    prompt: str | Sequence[int],
    columns: list[Column],
    options: Options,
    stop: Any,
    stream: bool,
) -> dict[Any, Trace] | Iterator[Event]:
    """Return the columns' events, or their traces once all have finished."""
    ids = check_prompt(model.decoder, prompt, options.max_new_tokens)
    check_ids(model.decoder, options.forced, "forced")
    text = prompt if isinstance(prompt, str) else model.decoder.decode(ids)
    events = _run(model, store, text, ids, columns, options, stop)
    if stream:
        return events
    *_, done = events
    return dict(done.values)


def _run(
    model: FusedModel,
    store: Store | None,
    prompt: str,
    ids: list[int],
    columns: list[Column],
    options: Options,
    stop: Any,
) -> Iterator[Event]:
    """Yield an Event a step and the traces at the end.

    Forced tokens are read with the prompt, in one pass; their steps come from its last positions.
    """
    clock, luck = Clock(), torch.Generator().manual_seed(options.seed)
    forced = list(options.forced)
    routed = {column.name: column.system for column in columns if column.lmbda == AUTO}
    live, output, evidence = columns, None, Evidence()
    while live:
        if stop is not None and stop.is_set():
            for column in live:
                column.finish = "stop"
            break
        begin = time.perf_counter()
        ahead = len(forced) - len(live[0].steps)  # how many forced tokens follow this step's place
        if output is None:
            read = torch.tensor([ids + forced])
            last = reached(ids, bool(routed)) + 1 + len(forced)
            output = model.decoder.forward(read, use_cache=True, last=last)
            clock.prefill_ms = 1000 * (time.perf_counter() - begin)
            evidence = read_prompt(model, output, ids, routed, store)
            clock.read = evidence.seconds
        elif ahead < 0:
            output = _advance(model.decoder, output, live, clock)
        at = -1 - max(0, ahead)
        sources = model.sources(output.hidden[:, at], output.logits[:, at], store)
        for part, seconds in sources.seconds.items():
            clock.add(part, seconds, len(output.hidden))
        _choose(model, store, sources, live, evidence, options, luck, begin)
        yield Event("step", {column.name: column.steps[-1] for column in live})
        live = [column for column in live if not column.finish]
    yield Event("done", _traces(model, store, prompt, ids, columns, options, clock))


def _advance(
    decoder: Decoder, last: DecoderOutput, live: list[Column], clock: Clock
) -> DecoderOutput:
    """Return the decoder's output after every column's last token, one row a distinct history."""
    begin = time.perf_counter()
    histories = dict.fromkeys((column.row, column.steps[-1].token_id) for column in live)
    rows = {history: new for new, history in enumerate(histories)}
    parents = [row for row, _ in rows]
    if parents != list(range(len(last.hidden))):
        last.cache.batch_select_indices(torch.tensor(parents))
    for column in live:
        column.row = rows[column.row, column.steps[-1].token_id]
    tokens = torch.tensor([[token] for _, token in rows])
    output = decoder.forward(tokens, cache=last.cache, last=1)
    clock.add("decoder", time.perf_counter() - begin, len(rows))
    return output


@torch.inference_mode()
def _choose(
    model: FusedModel,
    store: Store | None,
    sources: Sources,
    live: list[Column],
    evidence: Evidence,
    options: Options,
    luck: torch.Generator,
    begin: float,
) -> None:
    """Add a step to every live column and mark those that have finished."""
    fused, weights = _mixed(model, sources, live, evidence)  # (columns, V)
    uniform = torch.rand((), generator=luck, dtype=torch.float64)
    tokens = sample(fused, options.temperature, options.top_k, options.top_p, uniform).tolist()
    given = options.forced[len(live[0].steps) :][:1]
    tokens = [*given] * len(live) or tokens
    taken = [[] for _ in range(sources.log_probs.shape[1])]
    for column, token in zip(live, tokens, strict=True):
        taken[column.row].append(token)
    _take_in(evidence, sources, live, tokens)
    decoder = model.decoder
    views = rows_of(decoder, sources, taken, store)
    ms = 1000 * (time.perf_counter() - begin)
    for column, token, weight in zip(live, tokens, weights, strict=True):
        special = token in decoder.special_ids
        piece = decoder.pieces[token] if special else column.text.push(decoder.token_bytes[token])
        own = {"lmbda": weight} if column.lmbda == AUTO else {}
        place = column.system, weight, len(column.steps), token
        view = views[column.row]
        column.steps.append(view.step(decoder.pieces, *place, text=piece, ms=ms, **own))
        if token in decoder.eos_ids:
            column.finish = "eos"
        elif len(column.steps) == options.max_new_tokens:
            column.finish = "length"


def _mixed(
    model: FusedModel, sources: Sources, live: list[Column], evidence: Evidence
) -> tuple[Tensor, list[float]]:
    """Return the columns' mixes (columns, V) and the lambda of each."""
    rows = [column.row for column in live]
    said = {system: sources[system] for system in {column.system for column in live}}
    other = torch.stack([said[column.system][column.row] for column in live])
    weights = [column.lmbda for column in live]
    for i, column in enumerate(live):
        if column.lmbda == AUTO:
            read = evidence.now([column.name]).expand(len(sources["lm"]))
            weights[i] = float(model.weights(sources, column.system, AUTO, read)[column.row])
    lmbdas = torch.tensor(weights, device=other.device)
    return interpolate(sources["lm"][rows], other, lmbdas), weights


def _take_in(evidence: Evidence, sources: Sources, live: list[Column], tokens: list[int]) -> None:
    """Let every column's token count for the lambdas that a router will choose after it."""
    for column, token in zip(live, tokens, strict=True):
        if column.lmbda == AUTO:
            row = [column.row]
            said = sources["lm"][row], sources[column.system][row]
            evidence.read([column.name], gaps(*said, torch.tensor([token])))


def _traces(
    model: FusedModel,
    store: Store | None,
    prompt: str,
    ids: list[int],
    columns: list[Column],
    options: Options,
    clock: Clock,
) -> dict[Any, Trace]:
    """Return what is kept of every column, by its name."""
    used = asdict(options) | asdict(model.settings) | {"forced": list(options.forced)}
    for name in ("lmbda", "auto"):
        used.pop(name)
    if not used["forced"]:
        used.pop("forced")
    return {
        column.name: Trace(
            system=column.system,
            prompt=prompt,
            prompt_ids=ids,
            lmbda=column.lmbda,
            settings=used,
            model={"bundle": model.name, "tokenizer_hash": model.decoder.tokenizer_hash},
            steps=column.steps,
            finish=column.finish,
            text=model.decoder.decode([step.token_id for step in column.steps]),
            cost=clock.cost(model, store, column),
        )
        for column in columns
    }
