"""Generation as an iterator of steps: several writers decoded as one batch over one prefill.

A writer is a system at one lambda after one prompt; `batches.py` has several prompts. A batch row
is a distinct history: writers that have written the same tokens share one row of the decoder, the
memory and the search, until they choose differently. The engine works on token ids; text is only
for traces. Nothing of a call is held after it.
"""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from mlpmem.engine.call import Call, Cancel, Clock, Event, Writer
from mlpmem.engine.distributions import interpolate, repetition_penalised, sample
from mlpmem.engine.fused import FusedModel, Sources, systems_of
from mlpmem.engine.prefill import keep_read, read_prompts
from mlpmem.engine.prefix import PrefixCache
from mlpmem.engine.router import Evidence, gaps
from mlpmem.engine.settings import GenerationOptions, check_lmbda, lambda_grid
from mlpmem.engine.steps import positions_of, ranked_tokens
from mlpmem.engine.trace import AUTO, RankedToken, Trace
from mlpmem.errors import MlpMemError
from mlpmem.fast.devices import threads_between
from mlpmem.model.decoder import Decoder, DecoderOutput
from mlpmem.model.tokenizer import text_parts, whole_text
from mlpmem.retrieval.datastore import Store

LMBDAS = lambda_grid(10)
GREEDY = GenerationOptions()


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
    prefix: PrefixCache | None = None,
) -> Iterator[Event]:
    """Return the Events of some systems (default: all) after one prompt.

    All parameters are checked before anything is computed. cancel.is_set() is checked before every
    token. The same seed gives every system the same random numbers, so it writes the same text in
    any company. Forced tokens are steps like the others: forcing a trace's own tokens changes
    nothing. store replaces the model's own in this call. Steps hold the sources that the systems
    mix, and those in `sources`. With lmbda "auto" a router chooses it for every token. What
    `prefix` has of the prompt is not read again.
    """
    store = store or model.store
    systems = distinct(model, systems, store)
    call = Call.of(model, systems, store, sources, options, cancel, special, prefix=prefix)
    lmbdas = model.lmbdas(systems, lmbda, store)
    read = call.read(prompt)
    return run(call, [Writer(system, system, lmbdas[system], read) for system in systems])


def distinct(model: FusedModel, systems: Sequence[str] | None, store: Store | None) -> list[str]:
    """Return the requested systems without repeats; all available ones for None."""
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

    Each equals what `compare` gives at that lambda. Equal histories are computed once, so the cost
    is little more than that of the texts that differ.
    """
    store = store or model.store
    system = model.check_system(system, store)
    if system == "lm" or not lmbdas:
        raise MlpMemError(
            "scrub needs a system with a lambda, such as memory or knn, and at least one lambda; "
            f"got {system!r} and {list(lmbdas)}"
        )
    for value in lmbdas:
        check_lmbda(value)
    call = Call.of(model, [system], store, sources, options, cancel, special)
    read = call.read(prompt)
    return run(call, [Writer(v, system, v, read) for v in dict.fromkeys(map(float, lmbdas))])


def run(call: Call, writers: list[Writer]) -> Iterator[Event]:
    """Yield an Event per step, then the traces; writers of one row share a prompt.

    Forced tokens are read together with the prompt; their steps come from the last positions.
    """
    clock, evidence = Clock(), Evidence()
    seeds = {writer.sample: call.options.seed + writer.sample for writer in writers}
    rngs = {sample: torch.Generator().manual_seed(seed) for sample, seed in seeds.items()}
    live, latest, output = writers, writers, None
    while live:
        if call.cancel is not None and call.cancel.is_set():
            for writer in live:
                writer.finish = "stop"
            break
        begin = time.perf_counter()
        # how many forced tokens follow this step
        ahead = len(call.options.forced) - len(live[0].steps)
        if output is None:
            output = read_prompts(call, writers, evidence, clock)
        elif ahead < 0:
            output = _decode_one(call, output, live, clock)
        at = -1 - max(0, ahead)
        states = output.states((slice(None), at))
        read = _histories(call, live, len(output.hidden))
        recalled = None if output.recalled is None else output.recalled.at(at)
        sources = call.model.sources(*states, call.store, call.parts, recalled, read)
        for part, seconds in sources.seconds.items():
            clock.add(part, seconds, len(output.hidden))
        with threads_between(call.model.decoder, len(output.hidden)):
            _choose(call, sources, live, evidence, rngs, begin)
        yield Event("step", {writer.name: writer.steps[-1] for writer in live})
        latest, live = live, [writer for writer in live if not writer.finish]
    if call.prefix is not None and output is not None:
        keep_read(call.prefix, call, output, latest, evidence)
    yield Event("done", {writer.name: _trace(call, writer, clock) for writer in writers})


def _histories(call: Call, live: list[Writer], rows: int) -> list[list[int]] | None:
    """Return what each row has read and written, None where no store needs it."""
    if call.store is None or call.store.texts is None:
        return None
    read: list[list[int]] = [[] for _ in range(rows)]
    for writer in live:
        read[writer.row] = writer.ids
    return read


def _decode_one(call: Call, last: DecoderOutput, live: list[Writer], clock: Clock) -> DecoderOutput:
    """Return the decoder's output after each writer's last token, one row per distinct history."""
    begin = time.perf_counter()
    histories = dict.fromkeys((writer.row, writer.steps[-1].token_id) for writer in live)
    rows = {history: new for new, history in enumerate(histories)}
    parents = [row for row, _ in rows]
    if parents != list(range(len(last.hidden))):
        last.cache.batch_select_indices(torch.tensor(parents))
    for writer in live:
        writer.row = rows[writer.row, writer.steps[-1].token_id]
    tokens = torch.tensor([[token] for _, token in rows])
    memory = call.model.memory if "memory" in call.parts else None
    output = call.model.decoder.forward(tokens, cache=last.cache, last=1, memory=memory)
    recalled = 0.0 if output.recalled is None else output.recalled.seconds
    clock.add("decoder", time.perf_counter() - begin - recalled, len(rows))
    return output


@torch.inference_mode()
def _choose(
    call: Call,
    sources: Sources,
    live: list[Writer],
    evidence: Evidence,
    rngs: Mapping[int, torch.Generator],
    begin: float,
) -> None:
    """Add a step to every live writer and set `finish` of those at their end."""
    options, decoder = call.options, call.model.decoder
    fused, weights = _mixed(call.model, sources, live, evidence)  # (writers, V)
    tokens = _sampled(fused, live, options, rngs)
    chosen = [[] for _ in range(sources.log_probs.shape[1])]
    for writer, token in zip(live, tokens, strict=True):
        chosen[writer.row].append(token)
    _add_evidence(evidence, sources, live, tokens)
    store = call.store if "knn" in call.parts else None
    positions = positions_of(decoder, sources, chosen, store)
    ranked = _ranked(call, sources, live, fused, weights, tokens)
    ms = 1000 * (time.perf_counter() - begin)
    for writer, token, weight, found in zip(live, tokens, weights, ranked, strict=True):
        special = token in decoder.special_ids
        piece = decoder.pieces[token] if special else writer.text.push(decoder.token_bytes[token])
        own: dict[str, Any] = {"lmbda": weight} if writer.lmbda == AUTO else {}
        own |= {"ranked": found} if found else {}
        choice = writer.system, weight, len(writer.steps), token
        position = positions[writer.row]
        writer.steps.append(position.step(decoder.pieces, *choice, text=piece, ms=ms, **own))
        writer.finish = _finish(writer, decoder, options)


def _sampled(
    fused: Tensor,
    live: list[Writer],
    options: GenerationOptions,
    rngs: Mapping[int, torch.Generator],
) -> list[int]:
    """Return every writer's next token: the forced one, or a sample of the mix (writers, V)."""
    drawn = {n: torch.rand((), generator=rng, dtype=torch.float64) for n, rng in rngs.items()}
    uniform = torch.stack([drawn[writer.sample] for writer in live])
    if forced := options.forced[len(live[0].steps) :][:1]:
        return [*forced] * len(live)
    if options.repetition_penalty != 1:
        seen = [writer.ids for writer in live]
        fused = repetition_penalised(fused, seen, options.repetition_penalty)
    limits = options.temperature, options.top_k, options.top_p
    return sample(fused, *limits, uniform, min_p=options.min_p).tolist()


def _ranked(
    call: Call,
    sources: Sources,
    live: list[Writer],
    fused: Tensor,
    weights: list[float],
    tokens: list[int],
) -> list[list[RankedToken]]:
    """Return every writer's token and its mix's likeliest ones, [] unless the call asks for them.

    fused (writers, V) is the mix itself, before temperature and penalty.
    """
    found: list[list[RankedToken]] = [[] for _ in live]
    if call.ranked is None:
        return found
    for system in dict.fromkeys(writer.system for writer in live):
        at = [i for i, writer in enumerate(live) if writer.system == system]
        some = torch.tensor([weights[i] for i in at], dtype=torch.float64)
        rows, own = [live[i].row for i in at], [tokens[i] for i in at]
        lists = ranked_tokens(sources, system, fused[at], some, own, call.ranked, rows)
        for i, tokens_there in zip(at, lists, strict=True):
            found[i] = tokens_there
    return found


def _finish(writer: Writer, decoder: Decoder, options: GenerationOptions) -> str:
    """Return why a writer ends with its last step, "" if it goes on."""
    step = writer.steps[-1]
    if step.token_id in decoder.eos_ids:
        return "eos"
    if options.stop and step.token_id not in decoder.special_ids:
        if writer.end.stops(decoder.token_bytes[step.token_id], options.stop):
            return "stop_string"
    return "length" if len(writer.steps) == options.max_new_tokens else ""


def _mixed(
    model: FusedModel, sources: Sources, live: list[Writer], evidence: Evidence
) -> tuple[Tensor, list[float]]:
    """Return the mixes (writers, V) and the lambda of each."""
    lm = sources["lm"][[writer.row for writer in live]]
    weights = [_weight(model, sources, writer, evidence) for writer in live]
    if not any(weights):
        return lm, weights
    log_probs = {system: sources[system] for system in {writer.system for writer in live}}
    other = torch.stack([log_probs[writer.system][writer.row] for writer in live])
    return interpolate(lm, other, torch.tensor(weights, device=lm.device)), weights


def _weight(model: FusedModel, sources: Sources, writer: Writer, evidence: Evidence) -> float:
    """Return a writer's lambda, fixed or its router's."""
    if writer.lmbda != AUTO:
        return float(writer.lmbda)
    read = evidence.now([writer.name]).expand(len(sources["lm"]))
    return float(model.weights(sources, writer.system, AUTO, read)[writer.row])


def _add_evidence(
    evidence: Evidence, sources: Sources, live: list[Writer], tokens: list[int]
) -> None:
    """Read the tokens of routed writers as evidence for their next lambdas."""
    for writer, token in zip(live, tokens, strict=True):
        if writer.lmbda == AUTO:
            row = [writer.row]
            log_probs = sources["lm"][row], sources[writer.system][row]
            evidence.read([writer.name], gaps(*log_probs, torch.tensor([token])))


def _text(decoder: Decoder, writer: Writer) -> str:
    """Return what a writer has written, without a last character that is not whole."""
    return whole_text(b"".join(text_parts(decoder, [step.token_id for step in writer.steps])))


def _trace(call: Call, writer: Writer, clock: Clock) -> Trace:
    """Return a writer's trace; its text ends before the first stop string."""
    model, options = call.model, call.options
    settings = asdict(model.settings) | _recorded(options)
    settings |= {"special": True} if call.special else {}
    for name in ("lmbda", "auto"):
        settings.pop(name)
    text = _text(model.decoder, writer)
    if writer.finish == "stop_string":
        text = text[: min(text.index(stop) for stop in options.stop if stop in text)]
    return Trace(
        system=writer.system,
        prompt=writer.prompt.text,
        prompt_ids=writer.prompt.ids,
        lmbda=writer.lmbda,
        settings=settings,
        model={"bundle": model.name, "tokenizer_hash": model.decoder.tokenizer_hash},
        steps=writer.steps,
        finish=writer.finish,
        text=text,
        cost=clock.cost(call, writer),
    )


def _recorded(options: GenerationOptions) -> dict[str, Any]:
    """Return options for a trace; those in `defaults` only if they were set."""
    values = asdict(options) | {"forced": list(options.forced), "stop": list(options.stop)}
    defaults = {"min_p": 0.0, "repetition_penalty": 1.0, "stop": [], "forced": []}
    return {name: value for name, value in values.items() if defaults.get(name, ...) != value}
