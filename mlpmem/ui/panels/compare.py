"""The Compare tab: one prompt, one column per system, and the requests of a column's own buttons.

A column can be scrubbed (its text at every lambda) and branched (another continuation).
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import gradio as gr

from mlpmem.engine.trace import shared_steps
from mlpmem.errors import MlpMemError, public_text
from mlpmem.retrieval.origins import passages_saying
from mlpmem.ui import components
from mlpmem.ui.components import packed
from mlpmem.ui.context import CLICK, PRIVATE, STREAM, Shared
from mlpmem.ui.figures.summary import ROUTED, headline_points
from mlpmem.ui.recordings import saved
from mlpmem.ui.recordings.rounds import rounds
from mlpmem.ui.recordings.words import words
from mlpmem.ui.request import columns, inputs, scrubs, stream
from mlpmem.ui.request.truth import with_truth

ORIGINS = 3  # passages that are shown as saying the same
ANSWER = 8000  # characters of an answer whose origin is looked for


def build(shared: Shared, tab: gr.Tab) -> None:
    """Lay out the tab and connect its events."""
    first = shared.recorded.first()
    with gr.Row(elem_classes="ask-row"):
        prompt = gr.Textbox(
            first["prompt"] if first else "", lines=1, max_lines=4, elem_id="prompt",
            placeholder=words(shared.recorded).prompt, label="Prompt", show_label=False,
            container=False, scale=1,
        )  # fmt: skip
        generate = gr.Button("Generate", variant="primary", elem_id="generate", scale=0)
        stop = gr.Button("Stop", elem_id="stop", scale=0)
    forgets = bool(shared.service.extras.tuned and shared.recorded.kept)
    examples = components.example_bar(
        shared.recorded.examples, bool(shared.recorded.surprises), forgets, elem_id="examples"
    )
    components.completion(shared.recorded.titles, elem_id="titles")
    with gr.Accordion("Options", open=False, elem_id="options"):
        options = _options(shared)
    view = components.token_view(
        _shown(shared, first), "pane-", list(shared.recorded.systems), asks=True,
        columns=shared.service.extras.listed(), records=_records(shared), elem_id="compare-view",
    )  # fmt: skip
    circuit = components.circuit(shared.recorded.context, elem_id="circuit")
    components.game(rounds(shared.recorded), elem_id="game")
    circuit.origin(_finder(shared), None, circuit, **CLICK)
    run = gr.on(
        [generate.click, prompt.submit],
        _streamer(shared),
        [prompt, shared.lambda_bar, shared.own, shared.choice, shared.taught, *options], view,
        **STREAM,
    )  # fmt: skip
    ask = view.ask(_asker(shared), [shared.own, shared.taught], view, **STREAM)
    stop.click(None, cancels=[run, ask])
    examples.pick(_picker(shared), None, [prompt, view], **CLICK)
    systems = options[0]
    shared.choice.change(_searching(shared), [shared.choice, systems], systems, **PRIVATE)
    boxes = [prompt, *options, view]
    shared.tools.opened(_opener(shared), None, boxes, **CLICK)
    gr.on(None, _restorer(shared), None, boxes, **PRIVATE)


def _shown(shared: Shared, comparison: dict | None) -> dict | None:
    """Return the view's value for a recording, None without one."""
    known = shared.recorded.known(comparison["prompt"]) if comparison else {}
    return stream.recorded(comparison, known | {"chat": shared.recorded.chat_form})


def _records(shared: Shared) -> dict[str, dict[str, list[float]]]:
    """Return {column: {"own" or "auto": [accuracy on new facts, accuracy on known facts]}}.

    "own" is at the column's fixed lambda, "auto" with a router. A tuned decoder is found by its
    label.
    """
    columns = {label: name for name, label in shared.service.extras.labels().items()}
    records: dict[str, dict[str, list[float]]] = {}
    for p in headline_points(shared.recorded.results or {}):
        name = p["name"] if p["kind"] != "tuned" else columns.get(p["said"])
        if name:
            kind = "auto" if name in ROUTED else "own"
            row = records.setdefault(ROUTED.get(name, name), {})
            row[kind] = [p["learned"] / 100, p["kept"] / 100]
    return records


def _searching(shared: Shared):
    """Return the handler of the choice of a datastore: a visitor's own has a column to answer in.

    A bundle without a datastore has none otherwise.
    """

    def searching(choice: Any, systems: Any) -> list[str]:
        others = [name for name in systems or () if name != "knn"]
        usual = "knn" in shared.recorded.systems and "knn" in (systems or ())
        return [*others, "knn"] if choice == "own" or usual else others

    return searching


def _options(shared: Shared) -> list[gr.components.Component]:
    names = [("decoder only", "lm"), ("with memory", "memory"), ("with datastore", "knn")]
    names += [(o.short, o.name) for o in shared.service.extras.offers.values()]
    systems = gr.CheckboxGroup(
        names, value=list(shared.recorded.systems), label="Columns", elem_id="systems"
    )
    with gr.Row(elem_classes="options-row"):
        return [
            systems,
            gr.Number(32, label="Max new tokens", precision=0),
            gr.Number(0.0, label="Temperature", step=0.1),
            gr.Number(1.0, label="Top-p", step=0.05),
            gr.Number(0, label="Top-k (0: all)", precision=0),
            gr.Number(0, label="Seed", precision=0),
            gr.Number(0.0, label="Min-p", step=0.05),
            gr.Number(1.0, label="Repetition penalty", step=0.05),
            gr.Checkbox(
                False, label="Parse control tokens, such as </s>, in the prompt", elem_id="special"
            ),
        ]


def _streamer(all_visitors: Shared):
    """Return the handler of Generate; it yields values for the token view."""

    def run(prompt, lmbda, own, choice, taught, chosen_systems, *numbers) -> Iterator[dict]:
        shared = all_visitors.of(taught)

        def values(stop: threading.Event) -> Iterator[dict]:
            typed = inputs.check_text(prompt)
            *bounded, special = numbers
            options = inputs.check_options(lmbda, *bounded, special=special)
            text = typed if options.special else shared.recorded.as_prompt(typed)
            store = shared.store(own, choice)
            chosen = columns.choose(shared.service, chosen_systems, store)
            searched = shared.searched(own, store, chosen.names)
            chat = shared.recorded.chat_form and not options.special
            fields = {"own": searched, "typed": typed if chat or text != typed else ""}
            yield from _whole(shared, text, chosen, options, stop, store, fields | {"chat": chat})

        yield from map(packed, stream.guarded(values))

    return run


def _whole(
    shared: Shared, text: str, chosen: columns.Chosen, options: inputs.RequestOptions, stop: Any,
    store: Any, fields: dict,
) -> Iterator[dict]:  # fmt: skip
    """Yield the values of a run of all its columns; `fields` are added to the first value.

    With fields["chat"] the text is asked in the decoder's chat template.
    """
    service, name = shared.service, stream.new_run()
    lmbdas = columns.lambdas(service.model, chosen.batch, options.lmbda, store)
    known = shared.recorded.known(text)
    begin = stream.begin(name, text, known, lmbdas, options.temperature)
    yield {**begin, **fields, "columns": chosen.names,
           **shared.captions(chosen.names, fields.get("own", ""))}  # fmt: skip
    asked = columns.asked(service.model, text, options.max_new_tokens, fields["chat"])
    events = columns.answers(service, chosen, asked, options.as_arguments(), stop, store)
    answers = [known["answer"], *known["aliases"]] if known["answer"] else []
    value: dict = {}
    for value in with_truth(stream.deltas(name, events), answers, service.model, store):
        yield value
    if value.get("kind") == "done":
        yield from scrubs.after(name, service.model, value["traces"], options, stop, store)


def _finder(shared: Shared):
    """Return the handler that finds, afterwards, passages that say what the memory wrote."""

    def find(event: gr.EventData) -> dict:
        data, run = inputs.event_values(event), stream.new_run()
        try:
            question = inputs.check_text(data.get("question"), "question")
            answer = inputs.check_text(data.get("answer"), "answer", ANSWER)
            found = passages_saying(shared.service.corpus, question, answer, ORIGINS)
        except MlpMemError as error:
            return packed({"run": run, "error": public_text(error), "origins": []})
        return packed({"run": run, "error": "", "origins": [asdict(one) for one in found]})

    return find


def _asker(shared: Shared):
    """Return the handler of a column's own buttons: scrub lambda, branch."""

    def ask(event: gr.EventData, own: Any, taught: Any) -> Iterator[dict]:
        yield from map(packed, guarded(shared.of(taught), event._data, own))

    return ask


def _picker(shared: Shared):
    """Return the handler of an example: run it, or show its recording while the model loads."""

    def choose(event: gr.EventData) -> tuple:
        index = inputs.event_values(event).get("index")
        examples, tuned = shared.recorded.examples, shared.service.extras.tuned
        run = {"kind": "invite", "run": stream.new_run()}
        if index == "surprise":
            prompt = shared.recorded.surprise()
        elif index == "forgets" and tuned and shared.recorded.kept:
            prompt = shared.recorded.question(shared.recorded.kept)
            run |= {"prompt": prompt, "systems": ["lm", "memory", tuned]}  # of this run only
        elif isinstance(index, int) and 0 <= index < len(examples):
            prompt = examples[index]["prompt"]
        else:
            message = stream.message("This example does not exist. Choose another.")
            return gr.skip(), message
        if shared.service.status.state == "ready":
            return prompt, run
        comparison = shared.recorded.comparison(prompt)
        if comparison:
            return prompt, _shown(shared, comparison)
        if shared.service.status.ready:
            return prompt, run
        message = stream.message("This example has no recording. Run it once the model is ready.")
        return prompt, message

    def pick(event: gr.EventData) -> tuple:
        prompt, value = choose(event)
        return prompt, packed(value)

    return pick


def _restorer(shared: Shared):
    """Return the handler that restores prompt, options and view from the page's address."""

    def restore(request: gr.Request) -> list:
        offered = list(shared.service.extras.offers)
        usual = shared.recorded.systems
        link = inputs.read_link(request.query_params, offered, usual)
        if link is None:
            return [gr.skip()] * (len(inputs.BOUNDS) + 4)
        prompt = shared.recorded.as_prompt(link.prompt)
        numbers = [getattr(link.options, field) for field in inputs.BOUNDS]
        value = {"kind": "linked", "run": stream.new_run(), "prompt": prompt,
                 **shared.recorded.known(prompt), "lmbda": link.options.lmbda,
                 "ready": shared.service.status.ready, "chat": shared.recorded.chat_form,
                 "traces": (shared.recorded.comparison(prompt) or {}).get("traces")}  # fmt: skip
        return [prompt, link.systems, *numbers, False, packed(value)]

    return restore


def _opener(shared: Shared):
    """Return the handler of a saved run: prompt and options become its own, as a link's do."""

    def show(event: gr.EventData) -> list:
        value = saved.shown(event, shared.others)
        traces = value.get("traces") or {}
        settings = next(iter(traces.values()))["settings"] if traces else {}
        query = {key: settings.get(field) for field, (_, key, *_) in inputs.BOUNDS.items()}
        query |= {"q": value.get("prompt"), "systems": ",".join(traces)}
        link = inputs.read_link(query, list(shared.service.extras.offers), shared.recorded.systems)
        if link is None:
            return [*[gr.skip()] * (len(inputs.BOUNDS) + 3), packed(value)]
        numbers = [getattr(link.options, field) for field in inputs.BOUNDS]
        special = settings.get("special") is True
        return [link.prompt, link.systems, *numbers, special, packed(value)]

    return show


PERIOD = 0.1  # seconds between progress values of a scrub


def answer(shared: Shared, data: Any, stop: threading.Event, own: Any = "") -> Iterator[dict]:
    """Yield the token view's values for one request; MlpMemError for an invalid one.

    own is the id of the visitor's own datastore, for a column that searched it.
    """
    request = inputs.check_request(data, list(shared.service.extras.offers))
    store = shared.store_of(own, request.own)
    kinds = {"scrub": _scrub, "branch": _branch, "typed": _typed}
    yield from kinds[request.kind](shared, request, stop, store)


def _typed(shared: Shared, request: inputs.Request, stop: Any, store: Any) -> Iterator[dict]:
    """Yield a run of several columns with the prompt as typed, without the question form."""
    chosen = columns.choose(shared.service, request.systems or None, store)
    fields = {"own": request.own, "typed": "", "chat": False}
    yield from _whole(shared, request.prompt, chosen, request.options, stop, store, fields)


def _branch(shared: Shared, request: inputs.Request, stop: Any, store: Any) -> Iterator[dict]:
    """Yield a run of one column that continues its forced tokens; the other columns stay."""
    service, run = shared.service, stream.new_run()
    chosen = columns.choose(service, [request.system], store)
    options = request.options.as_arguments() | {"forced": request.forced}
    known = shared.recorded.known(request.prompt)
    lmbdas = columns.lambdas(service.model, chosen.batch, request.options.lmbda, store)
    begin = stream.begin(run, request.prompt, known, lmbdas, request.options.temperature)
    for trace in begin["traces"].values():
        trace["settings"]["forced"] = request.forced
    fields = {"branch": True, "columns": [request.system], "own": request.own}
    fields |= shared.captions([request.system], request.own)
    yield begin | fields | {"chat": request.chat, "typed": request.prompt if request.chat else ""}
    asked = columns.asked(
        service.model, request.prompt, request.options.max_new_tokens, request.chat
    )
    events = columns.answers(service, chosen, asked, options, stop, store)
    yield from stream.deltas(run, events)


def _scrub(shared: Shared, request: inputs.Request, stop: Any, store: Any) -> Iterator[dict]:
    """Yield progress, then the texts at eleven lambdas with their time and that of a single run."""
    model = shared.service.model
    options = request.options.as_arguments() | {
        "forced": request.forced, "store": store, "sources": columns.sources(model, store),
    }  # fmt: skip
    lmbda = columns.lambdas(model, [request.system], options.pop("lmbda"), store)
    asked = columns.asked(model, request.prompt, options["max_new_tokens"], request.chat)
    own = {"run": request.run, "system": request.system}
    yield {"kind": "scrub", **own, "tokens": 0}
    begin = time.perf_counter()
    model.compare(asked, [request.system], lmbda=lmbda, cancel=stop, **options)
    single, last, tokens = time.perf_counter() - begin, begin, 0
    begin = time.perf_counter()
    for event in model.stream_scrub(asked, request.system, cancel=stop, **options):
        tokens += event.kind == "step"
        if event.kind == "done" and not stop.is_set():
            seconds = time.perf_counter() - begin
            traces = [trace.to_dict() for trace in event.values.values()]
            cost = {"seconds": seconds, "single": single}
            yield {"kind": "scrubbed", **own, "cost": cost, "texts": shared_steps(traces)}
        elif time.perf_counter() - last >= PERIOD:
            last = time.perf_counter()
            yield {"kind": "scrub", **own, "tokens": tokens}


def guarded(shared: Shared, data: Any, own: Any = "") -> Iterator[dict]:
    """Yield answer's values; an error becomes a message."""
    yield from stream.guarded(lambda stop: answer(shared, data, stop, own))
