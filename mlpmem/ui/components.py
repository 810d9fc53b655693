"""The page's own components: empty `gr.HTML` hosts whose life is in static/main.js.

Their templates hold no values on purpose. Gradio evaluates a rendered template as JavaScript, so
a token `${...}` inside one would run; everything from a model or a corpus goes through textContent.
Functions rather than subclasses: Gradio writes a stub file beside the source of every subclass.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from mlpmem.ui import modules

STATIC = Path(__file__).parent / "static"
# nested in the container, so that they outweigh Gradio's
STYLES = (
    "core/base", "view/panes", "drawer/drawer", "tools/dock", "tabs/chat", "tabs/inspect",
    "tabs/corpus", "view/asks", "tools/tools",
)  # fmt: skip


def style() -> str:
    """Return all of the page's own CSS."""
    nested = "\n".join((STATIC / f"{name}.css").read_text("utf-8") for name in STYLES)
    return f"{(STATIC / 'core/theme.css').read_text('utf-8')}.gradio-container {{ {nested} }}"


def script(entry: str = "main.js") -> str:
    """Return an entry module with all it imports, as one script that sets `window.MLPMEM`."""
    return modules.bundle(STATIC / entry)


def head() -> str:
    """Return the markup for the document's head: all styles and scripts, nothing from elsewhere."""
    return f"<style>{style()}</style><script>{script()}</script>"


def packed(value: Any) -> dict[str, str]:
    """Return a value as it must leave a generator: one string, which Gradio can only replace.

    Of structured values it sends differences and applies them in place, to objects the page still
    holds; the string also keeps thousands of numbers out of the browser's reactive state.
    """
    return {"json": json.dumps(value, ensure_ascii=False, separators=(",", ":"))}


def part(value: Any, host: str, mount: str, **kwargs: Any) -> gr.HTML:
    """Return an empty host element and the script that fills it; the value is any plain JSON."""
    template = f'<div class="{host}"></div>'
    return gr.HTML(
        value, html_template=template, js_on_load=mount, apply_default_css=False, **kwargs
    )


def static(markup: str, mount: str | None = None, **kwargs: Any) -> gr.HTML:
    """Return fixed markup of our own, with a script where one is needed."""
    return gr.HTML(markup, js_on_load=mount, apply_default_css=False, **kwargs)


def token_view(
    value: Any,
    prefix: str,
    systems: list[str],
    asks: bool = False,
    columns: Sequence[dict] = (),
    records: dict[str, dict[str, list[float]]] | None = None,
    **kwargs: Any,
) -> gr.HTML:
    """Return panes of tokens with the drawer; without `systems` each run names its panes.

    columns says of further ones how they are called, records what systems were measured to get
    right, [new facts, known facts]. With asks the panes offer what only a model
    can do; the view fires `ask` with a request.
    """
    ask = ", (data) => trigger('ask', data)" if asks else ""
    mount = f"MLPMEM.mountView(element, props, watch{ask});"
    named = {
        "prefix": prefix,
        "systems": systems,
        "columns": list(columns),
        "records": records or {},
    }
    return part(packed(value), "view-host", mount, **named, **kwargs)


def lambda_bar(**kwargs: Any) -> gr.HTML:
    """Return the one lambda slider; as an input it is {"lmbda": a number, "auto" or None}."""
    mount = "MLPMEM.mountLambda(element, props);"
    return part({"lmbda": None}, "lambda-host", mount, **kwargs)


def status(value: dict, **kwargs: Any) -> gr.HTML:
    """Return the status chip with the datastore's progress."""
    return part(value, "status-host", "MLPMEM.mountStatus(element, props, watch);", **kwargs)


def tools(**kwargs: Any) -> gr.HTML:
    """Return the head's buttons: tour, share, keys, light or dark.

    It fires `opened` with {"text": a saved run} and `ahead` while a run waits for its turn; its
    value {"ahead": runs before it} is the answer.
    """
    events = "{ open: (text) => trigger('opened', { text }), ask: () => trigger('ahead') }"
    mount = f"MLPMEM.mountTools(element, props, watch, {events});"
    return part({"ahead": None}, "tools-host", mount, **kwargs)


def example_bar(
    examples: list[dict], surprises: bool, forgets: bool = False, **kwargs: Any
) -> gr.HTML:
    """Return example chips by group; it fires `pick` with {"index": ...}.

    The index is a position, "surprise" or, where a fine-tuned decoder is there, "forgets".
    """
    mount = "MLPMEM.mountExamples(element, props, (_, data) => trigger('pick', data));"
    offers = {"surprises": surprises, "forgets": forgets}
    return part(examples, "examples-host", mount, **offers, **kwargs)


def completion(titles: list[list[str]], **kwargs: Any) -> gr.HTML:
    """Return what completes [name, group] titles in the prompt box, in the browser alone."""
    mount = "MLPMEM.mountTitles(element, props);"
    return part(packed(titles), "titles-host", mount, **kwargs)


def chat_log(hint: str, **kwargs: Any) -> gr.HTML:
    """Return the conversation, [{"question", "answer", "system"}, ...], and what to ask in it.

    It fires `came` when other sources can answer than before.
    """
    mount = "MLPMEM.mountLog(element, props, watch, () => trigger('came'));"
    return part(packed([]), "log-host", mount, hint=hint, **kwargs)


def inspect_view(example: str, **kwargs: Any) -> gr.HTML:
    """Return the view of an inspected text: tokens, lines of nll, gains, losses, documents.

    Before there is one it offers the example, unless that is "".
    """
    mount = "MLPMEM.mountInspect(element, props, watch);"
    return part(packed(None), "inspect-host", mount, example=example, **kwargs)


def probe(**kwargs: Any) -> gr.HTML:
    """Return what carries the drawer's probe.

    It fires `probe` with {"number", "ids", "text", "own"}.
    """
    mount = "MLPMEM.mountProbe(props, watch, (data) => trigger('probe', data));"
    return part(packed(None), "probe-host", mount, **kwargs)


def corpus_view(**kwargs: Any) -> gr.HTML:
    """Return hits and an open document; it fires `open` with {"document": an index}, or with
    {"title", "group"}.
    """
    mount = "MLPMEM.mountCorpus(element, props, watch, (data) => trigger('open', data));"
    return part(packed(None), "corpus-host", mount, **kwargs)


def own_view(**kwargs: Any) -> gr.HTML:
    """Return what is said of a visitor's own datastore: progress, size, until when."""
    mount = "MLPMEM.mountOwn(element, props, watch);"
    return part(packed(None), "own-host", mount, **kwargs)
