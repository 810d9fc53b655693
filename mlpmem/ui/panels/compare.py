"""The Compare tab: one prompt, one batch, a column for each system."""

import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr

from mlpmem.engine.trace import SOURCES
from mlpmem.ui import components, requests, share
from mlpmem.ui.components import packed
from mlpmem.ui.context import PRIVATE, STREAM, Shared
from mlpmem.ui.figures.summary import ROUTED, headline_points
from mlpmem.ui.recordings.words import words
from mlpmem.ui.request import columns, inputs, stream


def build(shared: Shared, tab: gr.Tab) -> None:
    """Lay out the panel inside its tab and wire it."""
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
        _shown(shared, first), "pane-", list(SOURCES), asks=True,
        columns=shared.service.extras.listed(), records=_records(shared), elem_id="compare-view",
    )  # fmt: skip
    run = gr.on(
        [generate.click, prompt.submit],
        _streamer(shared), [prompt, shared.lambda_bar, shared.own, shared.choice, *options], view,
        **STREAM,
    )  # fmt: skip
    ask = view.ask(_asker(shared), shared.own, view, **STREAM)
    stop.click(None, cancels=[run, ask])
    picked = [prompt, options[0], view]
    examples.pick(_picker(shared), None, picked, trigger_mode="multiple", **PRIVATE)
    shared.tools.opened(share.show, None, view, trigger_mode="multiple", **PRIVATE)
    gr.on(None, _restorer(shared), None, [prompt, *options, view], **PRIVATE)


def _shown(shared: Shared, comparison: dict | None) -> dict | None:
    """Return the value that shows a recording, None without one."""
    known = shared.recorded.known(comparison["prompt"]) if comparison else {}
    return stream.recorded(comparison, known)


def _records(shared: Shared) -> dict[str, dict[str, list[float]]]:
    """Return, of a column, the shares of new and of known facts that it was measured to get right:
    at its own one lambda ("own"), and where a router chooses it ("auto").

    A tuned decoder is known by the label of its measurement.
    """
    columns = {label: name for name, label in shared.service.extras.labels().items()}
    found: dict[str, dict[str, list[float]]] = {}
    for p in headline_points(shared.recorded.results or {}):
        name = p["name"] if p["kind"] != "tuned" else columns.get(p["said"])
        if name:
            kind = "auto" if name in ROUTED else "own"
            row = found.setdefault(ROUTED.get(name, name), {})
            row[kind] = [p["learned"] / 100, p["kept"] / 100]
    return found


def _options(shared: Shared) -> list[gr.components.Component]:
    names = [("decoder alone", "lm"), ("with memory", "memory"), ("with datastore", "knn")]
    names += [(o.short, o.name) for o in shared.service.extras.offers.values()]
    systems = gr.CheckboxGroup(names, value=list(SOURCES), label="Columns", elem_id="systems")
    with gr.Row(elem_classes="options-row"):
        return [
            systems,
            gr.Number(32, label="Max new tokens", precision=0),
            gr.Number(0.0, label="Temperature", step=0.1),
            gr.Number(1.0, label="Top-p", step=0.05),
            gr.Number(0, label="Top-k (0: all)", precision=0),
            gr.Number(0, label="Seed", precision=0),
        ]


def _streamer(shared: Shared):
    """Return the generator behind Generate; it yields values for the token view."""

    def run(prompt, lmbda, own, choice, chosen_systems, *numbers) -> Iterator[dict]:
        def values(stop: threading.Event) -> Iterator[dict]:
            text = inputs.as_prompt(inputs.check_text(prompt))
            chosen = inputs.check_options(lmbda, *numbers)
            service, store = shared.service, shared.store(own, choice)
            asked = columns.choose(service, chosen_systems, store)
            name = stream.new_run()
            lmbdas = columns.lambdas(service.model, asked.batch, chosen.lmbda, store)
            known = shared.recorded.known(text)
            begin = stream.begin(name, text, known, lmbdas, chosen.temperature)
            searched = shared.searched(own, store, asked.names)
            yield {**begin, "own": searched, "columns": asked.names}
            options = chosen.as_arguments()
            events = columns.answers(service, asked, text, options, stop, store)
            yield from stream.deltas(name, events)

        yield from map(packed, stream.guarded(values))

    return run


def _asker(shared: Shared):
    """Return the generator behind a column's own buttons: scrub lambda, branch."""

    def ask(event: gr.EventData, own: Any) -> Iterator[dict]:
        yield from map(packed, requests.guarded(shared, event._data, own))

    return ask


def _picker(shared: Shared):
    """Return what a click on an example does: run it, or show its recording meanwhile."""

    def choose(event: gr.EventData) -> tuple:
        index = (event._data or {}).get("index")
        examples, tuned = shared.recorded.examples, shared.service.extras.tuned
        names = gr.skip()
        if index == "surprise":
            prompt = shared.recorded.surprise()
        elif index == "forgets" and tuned and shared.recorded.kept:
            prompt, names = shared.recorded.question(shared.recorded.kept), ["lm", "memory", tuned]
        elif isinstance(index, int) and 0 <= index < len(examples):
            prompt = examples[index]["prompt"]
        else:
            message = stream.message("That example is not there. Pick another.")
            return gr.skip(), gr.skip(), message
        if shared.service.status.state == "ready":
            return prompt, names, {"kind": "invite", "run": stream.new_run()}
        comparison = shared.recorded.comparison(prompt)
        if comparison:
            return prompt, names, _shown(shared, comparison)
        if shared.service.status.ready:
            return prompt, names, {"kind": "invite", "run": stream.new_run()}
        message = stream.message("It has no recording and runs once the model is there.")
        return prompt, names, message

    def pick(event: gr.EventData) -> tuple:
        prompt, names, value = choose(event)
        return prompt, names, packed(value)

    return pick


def _restorer(shared: Shared):
    """Return what the page's address asks for when it is opened: prompt, options, the view."""

    def restore(request: gr.Request) -> list:
        offered = list(shared.service.extras.offers)
        link = inputs.read_link(request.query_params, offered)
        if link is None:
            return [gr.skip()] * (len(inputs.BOUNDS) + 3)
        prompt = inputs.as_prompt(link.prompt)
        numbers = [getattr(link.options, field) for field in inputs.BOUNDS]
        value = {"kind": "linked", "run": stream.new_run(), "prompt": prompt,
                 **shared.recorded.known(prompt), "lmbda": link.options.lmbda,
                 "ready": shared.service.status.ready,
                 "traces": (shared.recorded.comparison(prompt) or {}).get("traces")}  # fmt: skip
        return [prompt, link.systems, *numbers, packed(value)]

    return restore
