"""The page's own components: empty `gr.HTML` elements that static/main.js fills.

Their templates contain no values. Gradio evaluates a rendered template as JavaScript, so a token
`${...}` in one would run; text of a model or a corpus is set by textContent only. They are
functions because Gradio writes a stub file next to the source of every subclass.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from mlpmem.ui import modules

STATIC = Path(__file__).parent / "static"
# nested in the container for precedence over Gradio's styles
STYLES = (
    "core/base", "view/panes", "circuit/circuit", "circuit/value", "drawer/drawer", "tools/dock",
    "tabs/pages", "tools/game", "tabs/inspect", "tabs/corpus", "tabs/teach", "tabs/results",
    "view/asks",
    "tools/tools", "chat/chat", "chat/answer",
)  # fmt: skip


def style() -> str:
    """Return all of the page's CSS."""
    nested = "\n".join((STATIC / f"{name}.css").read_text("utf-8") for name in STYLES)
    return f"{(STATIC / 'core/theme.css').read_text('utf-8')}.gradio-container {{ {nested} }}"


def script(entry: str = "main.js") -> str:
    """Return an entry module and its imports as one script that sets `window.MLPMEM`."""
    return modules.bundle(STATIC / entry)


def head() -> str:
    """Return the markup of the document's head: all styles and scripts, inline."""
    return f"<style>{style()}</style><script>{script()}</script>"


def packed(value: Any) -> dict[str, str]:
    """Return a value as one JSON string, which Gradio replaces as a whole.

    Gradio patches structured values in place, in objects that the page still uses. The string also
    keeps thousands of numbers out of the browser's reactive state.
    """
    return {"json": json.dumps(value, ensure_ascii=False, separators=(",", ":"))}


def part(value: Any, host: str, mount: str, **kwargs: Any) -> gr.HTML:
    """Return an empty element and the script that fills it; the value is plain JSON."""
    template = f'<div class="{host}"></div>'
    return gr.HTML(
        value, html_template=template, js_on_load=mount, apply_default_css=False, **kwargs
    )


def static(markup: str, mount: str | None = None, **kwargs: Any) -> gr.HTML:
    """Return fixed markup with an optional script."""
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

    columns are the offers of extra columns; records are measured accuracies, [new facts, known
    facts]. With asks the panes have the buttons that need a model, which fire `ask` with a request.
    """
    ask = "(data) => trigger('ask', data)" if asks else "null"
    mount = f"MLPMEM.mountView(element, props, watch, {ask});"
    fields = {
        "prefix": prefix,
        "systems": systems,
        "columns": list(columns),
        "records": records or {},
    }
    return part(packed(value), "view-host", mount, **fields, **kwargs)


def circuit(context: bool, **kwargs: Any) -> gr.HTML:
    """Return the picture of one token's way through decoder, memory, datastore and valve.

    context tells whether the memory also reads the context vector. It fires `origin` with
    {"question", "answer"}, and its value is the reply: passages that say the same.
    """
    mount = "MLPMEM.mountCircuit(element, props, watch, (data) => trigger('origin', data));"
    return part(packed(None), "circuit-host", mount, context=context, **kwargs)


def game(rounds: list[dict], **kwargs: Any) -> gr.HTML:
    """Return the game on recorded questions, see recordings/rounds.py; empty without any."""
    return part(rounds, "game-host", "MLPMEM.mountGame(element, props);", **kwargs)


def lambda_bar(**kwargs: Any) -> gr.HTML:
    """Return the lambda slider; as an input it is {"lmbda": a number, "auto" or None}."""
    mount = "MLPMEM.mountLambda(element, props);"
    return part({"lmbda": None}, "lambda-host", mount, **kwargs)


def status(value: dict, **kwargs: Any) -> gr.HTML:
    """Return the status chip with the progress of loading; it fires `download` for a file."""
    mount = "MLPMEM.mountStatus(element, props, watch, () => trigger('download'));"
    return part(value, "status-host", mount, **kwargs)


def tools(**kwargs: Any) -> gr.HTML:
    """Return the header's buttons: tour, share, keys, light or dark.

    It fires `opened` with {"text": a saved run}, and `ahead` while a run waits; the reply is its
    value {"ahead": number of runs before it}.
    """
    events = "{ open: (text) => trigger('opened', { text }), ask: () => trigger('ahead') }"
    mount = f"MLPMEM.mountTools(element, props, watch, {events});"
    return part({"ahead": None}, "tools-host", mount, **kwargs)


def example_bar(
    examples: list[dict], surprises: bool, forgets: bool = False, **kwargs: Any
) -> gr.HTML:
    """Return the example chips by group; a click fires `pick` with {"index": ...}.

    The index is a position, "surprise" or, with a fine-tuned decoder, "forgets".
    """
    mount = "MLPMEM.mountExamples(element, props, (_, data) => trigger('pick', data));"
    offers = {"surprises": surprises, "forgets": forgets}
    return part(examples, "examples-host", mount, **offers, **kwargs)


def completion(titles: list[list[str]], **kwargs: Any) -> gr.HTML:
    """Return the prompt box's completion of [name, group] titles, which runs in the browser."""
    mount = "MLPMEM.mountTitles(element, props);"
    return part(packed(titles), "titles-host", mount, **kwargs)


def chat(texts: dict, **kwargs: Any) -> gr.HTML:
    """Return the chat, which is in the visitor's browser; its value is an answer's next part.

    texts are those of `chat_texts`. It fires `ask` with a request and `halt`.
    """
    events = "{ ask: (data) => trigger('ask', data), halt: () => trigger('halt') }"
    mount = f"MLPMEM.mountChat(element, props, watch, {events});"
    return part(packed(None), "chat-host", mount, texts=texts, **kwargs)


def inspect_view(example: str, chat: bool, **kwargs: Any) -> gr.HTML:
    """Return the view of an inspected text: tokens, nll curves, gains, losses, documents.

    While empty it offers the example, unless that is "", with its control tokens if it is a chat.
    """
    mount = "MLPMEM.mountInspect(element, props, watch);"
    return part(packed(None), "inspect-host", mount, example=example, chat=chat, **kwargs)


def probe(**kwargs: Any) -> gr.HTML:
    """Return the drawer's probe: it fires `probe`, and its value is the reply.

    The event's data is {"number", "ids", "text", "own"}.
    """
    mount = "MLPMEM.mountProbe(props, watch, (data) => trigger('probe', data));"
    return part(packed(None), "probe-host", mount, **kwargs)


def corpus_view(**kwargs: Any) -> gr.HTML:
    """Return hits and an open document; a click fires `open`.

    Its data is {"document": an index} or {"title", "group"}.
    """
    mount = "MLPMEM.mountCorpus(element, props, watch, (data) => trigger('open', data));"
    return part(packed(None), "corpus-host", mount, **kwargs)


def own_files(
    kinds: Sequence[str], most: dict[str, int], absent: dict[str, str], **kwargs: Any
) -> gr.HTML:
    """Return the choice of files and folders, by button or by drag, and the button that saves.

    It uploads the files of these kinds and fires `files` with {"files": [{"path", "name"}]}; most
    bounds their number and bytes. absent has what installs the reader of a kind that cannot be
    read. `save` asks for the datastore, which the value brings.
    """
    events = "{ send: (data) => trigger('files', data), save: () => trigger('save') }"
    mount = f"MLPMEM.mountFiles(element, props, watch, {events});"
    fields = {"kinds": list(kinds), "most": most, "absent": absent}
    return part(packed(None), "files-host", mount, **fields, **kwargs)


def own_view(**kwargs: Any) -> gr.HTML:
    """Return the status of a visitor's own datastore: progress, size, time left."""
    mount = "MLPMEM.mountOwn(element, props, watch);"
    return part(packed(None), "own-host", mount, **kwargs)


def teach_view(
    examples: Sequence[tuple[str, str]], longest: int, seconds: float, **kwargs: Any
) -> gr.HTML:
    """Return the part that tells facts and teaches the memory; examples are (fact, question).

    longest is a sentence's characters, seconds a teaching's at most. It fires `tell` with {"text"}
    or {"forget": a sentence}, `teach`, `halt` and `undo`.
    """
    events = (
        "{ tell: (data) => trigger('tell', data), teach: () => trigger('teach'), "
        "halt: () => trigger('halt'), undo: () => trigger('undo') }"
    )
    mount = f"MLPMEM.mountTeach(element, props, watch, {events});"
    fields = {"examples": [list(pair) for pair in examples], "longest": longest, "seconds": seconds}
    return part(packed(None), "teach-host", mount, **fields, **kwargs)
