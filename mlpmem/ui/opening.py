"""Models of parts and presets for the page: each function returns a `load` for Service."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlpmem.ui.service import (
    Later,
    Load,
    Tell,
    cost_line,
    megabytes,
    seconds_text,
    tell_tokens,
)


def open_parts(
    decoder: str,
    memory: str | None = None,
    text: Sequence[Path] = (),
    *,
    train: bool = False,
    **held,
) -> Load:
    """Return a `load` of a decoder (folder or hub id), with a memory of its own or none.

    Texts become a datastore and, with `train`, a memory; the decoder answers meanwhile. `held` is
    from_parts' device and dtype.
    """

    def load(tell: Tell) -> tuple[Any, list[Later]]:
        from mlpmem.hub import fetch
        from mlpmem.parts import from_parts

        folder = fetch(decoder, "decoder", tell=tell)
        tell("reading the weights", None)
        model = from_parts(folder, memory, tell=tell, **held)
        later = _texts(model, text)
        if train:
            later.append(Later("memory", partial(_distil, model, folder, text)))
        return model, later

    return load


def open_preset(name: str, text: Sequence[Path] = (), **held) -> Load:
    """Return a `load` of a preset, with a datastore of texts where there are some."""

    def load(tell: Tell) -> tuple[Any, list[Later]]:
        from mlpmem import presets

        model = presets.open_preset(name, tell=tell, **held)
        return model, _texts(model, text)

    return load


def _texts(model: Any, text: Sequence[Path]) -> list[Later]:
    """Return what makes a datastore of text files, nothing without any."""
    return [Later("datastore", partial(_attach, model, text))] if text else []


def _attach(model: Any, text: Sequence[Path], tell: Tell) -> tuple[Any, str]:
    """Return the model with a datastore of text files, and a line on its cost."""
    from mlpmem.parts import attach_text

    built = attach_text(model, text, progress=partial(tell_tokens, tell))
    return model, cost_line(model, built)


def _distil(model: Any, decoder: Path, text: Sequence[Path], tell: Tell) -> tuple[Any, str]:
    """Return a model with a memory distilled from text files, and a line on its cost."""
    from mlpmem.distil import distil

    begin = time.perf_counter()
    made = model.with_memory(distil(model, decoder, text, tell))
    took = seconds_text(time.perf_counter() - begin)
    return made, f"memory made in {took}, {megabytes(made.memory.bytes)}"
