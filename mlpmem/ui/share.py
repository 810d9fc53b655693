"""A saved run that a visitor opens: checked, then shown without the model."""

import gradio as gr

from mlpmem.errors import MlpMemError
from mlpmem.ui.components import packed
from mlpmem.ui.recordings import saved
from mlpmem.ui.request import stream
from mlpmem.ui.request.limits import said


def show(event: gr.EventData) -> dict:
    """Return the token view's value for the file's text, or one that says what is wrong."""
    try:
        run = saved.read((event._data or {}).get("text"))
    except MlpMemError as error:
        return packed(stream.message(said(error)))
    return packed({"kind": "opened", "run": stream.new_run(), **run})
