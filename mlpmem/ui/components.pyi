"""The page's own components: thin `gr.HTML` subclasses whose life is in static/*.js.

Their templates hold no values on purpose. Gradio evaluates a rendered template as JavaScript, so
a token `${...}` inside one would run; everything from a model or a corpus goes through textContent.
"""

from pathlib import Path
from typing import Any

import gradio as gr

STATIC = Path(__file__).parent / "static"
SCRIPTS = (
    "dom", "mix", "state", "tokens", "cost", "panes", "curve", "evidence", "drawer", "legend",
    "replay", "view", "lambda", "chat", "panels", "page",
)  # fmt: skip
STYLES = ("base", "panes", "drawer", "dock", "chat")


def head() -> str:
    """Return the markup for the document's head: all styles and scripts, nothing from elsewhere."""
    style = "\n".join((STATIC / f"{name}.css").read_text("utf-8") for name in STYLES)
    script = "\n".join((STATIC / f"{name}.js").read_text("utf-8") for name in SCRIPTS)
    return f"<style>{style}</style><script>{script}</script>"

from gradio.events import Dependency

class Part(gr.HTML):
    """An empty host element and the script that fills it; the value is any plain JSON."""

    def __init__(self, value: Any, host: str, mount: str, **kwargs: Any):
        super().__init__(
            value,
            html_template=f'<div class="{host}"></div>',
            js_on_load=mount,
            apply_default_css=False,
            **kwargs,
        )

    def api_info(self) -> dict[str, Any]:
        return {"type": "object"}

    def postprocess(self, value: Any) -> Any:
        return value

    def get_block_name(self) -> str:
        return "html"
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class TokenView(Part):
    """Panes of tokens with the drawer; `systems` fixes the panes, without it each run names them."""

    def __init__(self, value: Any = None, *, prefix: str, systems: list[str], **kwargs: Any):
        mount = "MLPMEM.mountView(element, props, watch);"
        super().__init__(value, "view-host", mount, prefix=prefix, systems=systems, **kwargs)
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class LambdaBar(Part):
    """The one lambda slider; as an input its value is {"lmbda": a number, or None if untouched}."""

    def __init__(self, **kwargs: Any):
        super().__init__(
            {"lmbda": None}, "lambda-host", "MLPMEM.mountLambda(element, props);", **kwargs
        )
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class Status(Part):
    """The status chip with the datastore's progress."""

    def __init__(self, value: dict, **kwargs: Any):
        super().__init__(
            value, "status-host", "MLPMEM.mountStatus(element, props, watch);", **kwargs
        )
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class ExampleBar(Part):
    """Example chips by group; fires `pick` with {"index": position in the list}."""

    def __init__(self, examples: list[dict], **kwargs: Any):
        mount = "MLPMEM.mountExamples(element, props, (_, data) => trigger('pick', data));"
        super().__init__(examples, "examples-host", mount, **kwargs)
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class ChatLog(Part):
    """The conversation: [{"question", "answer", "system"}, ...]."""

    def __init__(self, **kwargs: Any):
        super().__init__([], "log-host", "MLPMEM.mountLog(element, props, watch);", **kwargs)
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class Header(gr.HTML):
    """The page's name; no values, so plain markup."""

    def __init__(self, **kwargs: Any):
        super().__init__(
            html_template=(STATIC / "header.html").read_text("utf-8"),
            js_on_load=None,
            apply_default_css=False,
            **kwargs,
        )

    def get_block_name(self) -> str:
        return "html"
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component