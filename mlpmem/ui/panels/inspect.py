"""The Inspect tab: every source's nll of each token of a text; and the drawer's probe box."""

import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr

from mlpmem.engine.trace import AUTO
from mlpmem.errors import MlpMemError, public_text
from mlpmem.ui import components
from mlpmem.ui.components import packed
from mlpmem.ui.context import STREAM, Shared
from mlpmem.ui.request import inputs, stream

MAX_CHARACTERS = 8000  # the model limits the tokens
PLACEHOLDER = "Paste a text of up to 512 tokens, or press Inspect at an answer in Compare"


def build(shared: Shared, tab: gr.Tab) -> None:
    """Lay out the tab and connect its events."""
    with gr.Row(elem_classes="ask-row"):
        text = gr.Textbox(
            "", lines=2, max_lines=8, placeholder=PLACEHOLDER, elem_id="inspect-text",
            label="Text", show_label=False, container=False, scale=1,
        )  # fmt: skip
        score = gr.Button("Inspect", variant="primary", elem_id="inspect-score", scale=0)
        stop = gr.Button("Stop", elem_id="inspect-stop", scale=0)
    special = gr.Checkbox(
        False, label="Parse control tokens, such as </s>, in the text", elem_id="inspect-special"
    )
    brought = gr.Textbox("", visible="hidden", elem_id="inspect-brought")
    example, chat = shared.recorded.text(), shared.recorded.chat_form
    view = components.inspect_view(example, chat, elem_id="inspect-view")
    inputs_ = [text, shared.lambda_bar, shared.own, shared.choice, shared.taught, special, brought]
    run = score.click(_inspector(shared), inputs_, view, **STREAM)
    stop.click(None, cancels=[run])


def build_probe(shared: Shared) -> None:
    """Connect the drawer's probe box; the drawer is on several tabs."""
    probe = components.probe(elem_id="probe")
    probe.probe(_prober(shared), [shared.own, shared.taught], probe, **STREAM)


def _inspector(all_visitors: Shared):
    """Return the handler of Inspect; it yields values for the view."""

    def run(
        text: Any, lmbda: Any, own: Any, choice: Any, taught: Any = "", special: Any = False,
        brought: Any = "",
    ) -> Iterator[dict]:  # fmt: skip
        shared = all_visitors.of(taught)

        def values(stop: threading.Event) -> Iterator[dict]:
            checked = inputs.check_text(text, "text", MAX_CHARACTERS)
            asked = inputs.brought_ids(brought, text) or checked
            chosen = inputs.check_lmbda(lmbda)
            chosen = None if chosen == AUTO else chosen  # a text is scored at fixed lambdas
            model, store = shared.service.model, shared.store(own, choice)
            name = stream.new_run()
            sources = [s for s in ("memory", "knn") if s in model.systems or s == "knn" and store]
            lmbdas = {s: model.settings.of(s) if chosen is None else chosen for s in sources}
            first = sources[0] if sources else "lm"
            call = {"lmbda": lmbdas.get(first, 0.0), "cancel": stop, "special": special is True}
            events = model.inspect(asked, first, store=store, **call)  # it checks the text
            searched = shared.searched(own, store, sources)
            yield {"kind": "begin", "run": name, "traces": {}, "own": searched}
            if sources == ["memory", "knn"]:  # a search may take a minute, the memory none
                early = model.only("memory").inspect(asked, "memory", **call)
                yield from _values(name, early, {"memory": lmbdas["memory"]}, "early")
            yield from _values(name, events, lmbdas or {"lm": 0.0})

        yield from map(packed, stream.guarded(values))

    return run


def _values(run: str, events: Any, lmbdas: dict[str, float], last: str = "done") -> Iterator[dict]:
    """Yield "progress" values and a last one with the trace and every source's lambda.

    It is "done", or "early" if the datastore's numbers follow.
    """
    for event in events:
        if event.kind == "progress":
            yield {"kind": "progress", "run": run, **event.values}
        else:
            traces = {system: trace.to_dict() for system, trace in event.values.items()}
            yield {"kind": last, "run": run, "traces": traces, "lmbdas": lmbdas}


def _prober(shared: Shared):
    """Return the handler of the probe box: every source's probability of a typed token.

    The datastore is the one that the run searched.
    """

    def probe(event: gr.EventData, own: Any, taught: Any = "") -> dict:
        data = inputs.event_values(event)
        number = data.get("number") if isinstance(data.get("number"), int) else 0
        try:
            ids, text = inputs.check_probe(data)
            store = shared.store_of(own, data.get("own"))
            rows = shared.of(taught).service.model.probe(ids, text, store=store)
            return packed({"number": number, "rows": rows})
        except MlpMemError as error:
            return packed({"number": number, "error": stream.message(public_text(error))["text"]})

    return probe
