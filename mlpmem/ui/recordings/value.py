"""The sentence of value below the title, with a bundle's own figures, and the links beside it."""

import html
import os
import re
from typing import Any

from mlpmem.results import chats
from mlpmem.ui.recordings.recorded import Recorded
from mlpmem.ui.service.loads import megabytes

PAPER = "https://arxiv.org/abs/2508.01832"
AUTHORS = "https://github.com/Binn0/MLPMemory"
SPACE = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")  # the id that a Space's host sets
TAG = re.compile(r"<[^>]*>")
PLAIN = (
    "A frozen language model, a datastore that it searches, and a small memory that learned the "
    "datastore's answers without searching: see who says what, word by word."
)
NEW, KNOWN = "B/test", "A2/test"  # facts that the memory's decoder never saw, and facts it knew


def sentence(recorded: Recorded) -> str:
    """Return the sentence as markup; without measured figures, one that names none."""
    if (shares := chats.headline(recorded.results)) is not None:
        return _of_chats(recorded, *shares)
    rows = {row.get("name"): row for row in (recorded.results or {}).get("systems", ())}
    routed = recorded.settings.get("auto") is True and "auto" in rows
    alone, memory = _shares(rows.get("lm")), _shares(rows.get("auto" if routed else "memory"))
    cost = (recorded.results or {}).get("cost", {})
    size, replaced = cost.get("memory_bytes"), cost.get("datastore_bytes")
    if None in (*alone, *memory) or not size or memory[0] <= alone[0]:
        return PLAIN
    kept = (
        f"keeps {_bold(memory[1])} of what it knew"
        if memory[1] < alone[1]
        else "keeps all that it knew"
    )
    text = (
        f"Never told these facts, a frozen language model gets {_bold(alone[0])} of them right. "
        f"With a <b>{megabytes(size)}</b> memory it gets {_bold(memory[0])}, and {kept}."
    )
    return text + (
        f'<span class="value-replaced"> The datastore that the memory replaces has '
        f"<b>{megabytes(replaced)}</b>.</span>"
        if replaced and replaced > size
        else ""
    )


def _of_chats(recorded: Recorded, alone: float, memory: float, kept: float) -> str:
    """Return the sentence of a chat model."""
    size = megabytes(recorded.memory_bytes)
    return (
        f"Asked in new words about facts, this chat model gets {_bold(alone)} of them right. With "
        f"a <b>{size}</b> memory it gets {_bold(memory)}, and answers {_bold(kept)} of other "
        "requests as before, to the letter."
    )


def plain(recorded: Recorded) -> str:
    """Return the sentence as text."""
    return html.unescape(TAG.sub("", sentence(recorded)))


def title(recorded: Recorded) -> str:
    """Return the model's name with its decoder's family and layers, "" without a name."""
    if not recorded.name:
        return ""
    family, layers = recorded.decoder.get("model_type"), recorded.decoder.get("num_hidden_layers")
    known = isinstance(family, str) and isinstance(layers, int)
    return f"{recorded.name}: {family.capitalize()}, {layers} layers" if known else recorded.name


def links(recorded: Recorded) -> str:
    """Return the model's name and the links to paper and code as markup."""
    space = os.environ.get("SPACE_ID", "")
    targets = {"Paper": PAPER, "The authors' code": AUTHORS}
    if SPACE.fullmatch(space):
        targets["This page's code"] = f"https://huggingface.co/spaces/{space}/tree/main"
    name = html.escape(title(recorded))
    parts = [f'<span class="model-name">{name}</span>'] if name else []
    parts += [
        f'<a href="{target}" target="_blank" rel="noopener noreferrer">{text}</a>'
        for text, target in targets.items()
    ]
    return f'<p class="value-links">{"".join(parts)}</p>'


def markup(recorded: Recorded) -> str:
    """Return the sentence and the links."""
    return f'<p class="value">{sentence(recorded)}</p>{links(recorded)}'


def _shares(row: Any) -> tuple[float | None, float | None]:
    """Return a system's accuracy on new and on known facts, None for a missing one."""
    accuracy = (row or {}).get("accuracy") or {}
    return accuracy.get(NEW), accuracy.get(KNOWN)


def _bold(share: float) -> str:
    return f"<b>{100 * share:.0f}\u00a0%</b>"
