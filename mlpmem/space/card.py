"""The card of a Space: README.md's front matter, which Hugging Face reads, and a few words below.

The front matter is YAML; every value is written as JSON, which YAML reads as it is.
"""

import json
from dataclasses import asdict, dataclass

from mlpmem.errors import MlpMemError

TITLE = "MLP Memory, live"
MARK = "mlp-memory-live"  # a tag: a folder whose card has it was built here
MOST_SHORT = 60  # characters of a short description; Hugging Face refuses a longer one


@dataclass(frozen=True)
class Card:
    """The front matter's fields, by Hugging Face's own names; None leaves one out."""

    title: str
    emoji: str = "\N{BRAIN}"  # the field takes nothing else
    colorFrom: str = "indigo"  # noqa: N815
    colorTo: str = "purple"  # noqa: N815
    sdk: str = "gradio"
    sdk_version: str | None = None
    python_version: str | None = None
    app_file: str = "app.py"
    short_description: str = "Watch a language model remember, token by token"
    suggested_hardware: str | None = None
    startup_duration_timeout: str | None = None
    license: str = "apache-2.0"
    tags: tuple[str, ...] = (MARK, "knn-lm", "interpretability")

    def __post_init__(self) -> None:
        """Raise MlpMemError for what Hugging Face would refuse."""
        if not self.title.strip() or "\n" in self.title:
            raise MlpMemError(f"space: the title is {self.title!r}; give one line of text")
        if len(self.short_description) > MOST_SHORT:
            raise MlpMemError(
                f"space: the short description has {len(self.short_description)} characters; "
                f"Hugging Face takes {MOST_SHORT}. Shorten it"
            )

    def text(self, body: str) -> str:
        """Return README.md: front matter, then body."""
        rows = {name: value for name, value in asdict(self).items() if value is not None}
        lines = [f"{name}: {json.dumps(v, ensure_ascii=False)}" for name, v in rows.items()]
        return "\n".join(["---", *lines, "---", "", f"# {self.title}", "", body, ""])
