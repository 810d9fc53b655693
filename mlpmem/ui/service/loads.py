"""Models of parts and presets for the page: each function returns a `load` for Service."""

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlpmem.ui.service.service import Later, Load, Tell


def open_parts(
    decoder: str,
    memory: str | None = None,
    text: Sequence[Path] = (),
    *,
    train: bool = False,
    device: str = "cpu",
    form: str | None = None,
    plain: bool = False,
) -> Load:
    """Return a `load` of a decoder (folder or hub id), with a memory of its own or none.

    Texts become a datastore and, with `train`, a memory; the decoder answers meanwhile. form is one
    of linear.FORMS, None the dtype that weights are read in anyway. They are laid out for a
    CPU; plain leaves them as they are, for LoRA to be merged into, where there is no form.
    """

    def load(tell: Tell) -> tuple[Any, list[Later]]:
        from mlpmem.loading.hub import fetch
        from mlpmem.loading.parts import form_for, open_folders

        folder, chosen = fetch(decoder, "decoder", tell=tell), form
        brought = fetch(memory, "memory", tell=tell) if memory else None
        tell("reading the weights", None)
        if form is None and not plain and device == "cpu":
            chosen = form_for(folder)
        held = laid_out(chosen, plain)
        model = open_folders(folder, brought, device=device, **held)
        sys.stderr.write(f"mlpmem: {said_of(model, chosen)}\n")
        later = _texts(model, text)
        if train:
            packed, bits = held.get("pack", False), held.get("bits", 0)
            later.append(Later("memory", partial(_distil, model, folder, text, packed, bits)))
        return model, later

    return load


def said_of(model: Any, form: str | None) -> str:
    """Return a line on the form of a decoder's weights, and on what is slower here than need be."""
    from mlpmem.fast.llama_pass import LlamaPass, has_numba

    line = f"the decoder's weights are {form or 'plain'}, {megabytes(model.decoder.bytes)}"
    if model.decoder.kl:
        line += f"; 4 bits move its answers by {model.decoder.kl:.4f} nats (KL, on a few words)"
    if isinstance(model.decoder.straight, LlamaPass) and not has_numba():
        line += "; numba is not installed, tokens take longer: pip install numba"
    return line


def open_preset(
    name: str,
    text: Sequence[Path] = (),
    device: str = "cpu",
    form: str | None = None,
    plain: bool = False,
) -> Load:
    """Return a `load` of a preset, with a datastore of texts where there are some.

    form and plain are open_parts'.
    """

    def load(tell: Tell) -> tuple[Any, list[Later]]:
        from mlpmem.loading import presets

        held = laid_out(form, plain)
        model = presets.open_preset(name, tell=tell, device=device, **held)
        return model, _texts(model, text)

    return load


def laid_out(form: str | None, plain: bool = False) -> dict[str, Any]:
    """Return how weights are held in a form, as options of parts.open_folders; see open_parts."""
    if form is None:
        return {"pack": not plain}
    from mlpmem.fast.linear import form_of

    dtype, bits = form_of(form)
    return {"dtype": dtype, "pack": True, "bits": bits}


def _texts(model: Any, text: Sequence[Path]) -> list[Later]:
    """Return what makes a datastore of text files, nothing without any."""
    return [Later("datastore", partial(_attach, model, text))] if text else []


def _attach(model: Any, text: Sequence[Path], tell: Tell) -> tuple[Any, str]:
    """Return the model with a datastore of text files, and a line on its cost."""
    from mlpmem.loading.parts import attach_text

    built = attach_text(model, text, progress=partial(tell_tokens, tell))
    return model, cost_line(model, built)


def _distil(
    model: Any, decoder: Path, text: Sequence[Path], packed: bool, bits: int, tell: Tell
) -> tuple[Any, str]:
    """Return a model with a memory distilled from text files, and a line on its cost."""
    from mlpmem.fast.linear import pack
    from mlpmem.loading.distil import distil

    begin = time.perf_counter()
    memory = distil(model, decoder, text, tell)
    if packed:
        pack(memory, bits)
    made = model.with_memory(memory)
    took = seconds_text(time.perf_counter() - begin)
    return made, f"memory made in {took}, {megabytes(made.memory.bytes)}"


def cost_line(model: Any, built: Any) -> str:
    """Return the sentence on what the datastore cost, set against the memory where there is one."""
    when = f"built in {seconds_text(built.seconds)}" + (" (cached)" if built.cached else "")
    line = f"datastore {when}, {megabytes(model.store.bytes)}"
    if model.memory is not None:
        line += f": the cost the {megabytes(model.memory.bytes)} memory removes"
    return f"{line}. {built.warning}" if built.warning else line


def seconds_text(seconds: float) -> str:
    """Return a duration as a person says it."""
    return f"{seconds:.0f} s" if seconds >= 1 else "under a second"


def megabytes(size: int) -> str:
    """Return a size in bytes as a person says it."""
    return f"{size / 1e6:,.0f}\u00a0MB" if size >= 1e6 else f"{size / 1e3:,.0f}\u00a0kB"


def tell_tokens(tell: Tell, done: int, total: int) -> None:
    """Tell how many of a datastore's tokens have their keys."""
    share = done / total if total else 0.0
    tell(
        f"building the datastore: {100 * share:.0f}%, "
        f"{done / 1000:,.0f}k of {total / 1000:,.0f}k tokens",
        share,
    )


def open_bundle(path: str | Path | None, datastore: bool = True) -> Load:
    """Return a `load` for Service that reads a bundle; nothing heavy is imported before it runs."""

    def load(tell: Tell) -> tuple[Any, list[Later]]:
        from mlpmem.loading.bundle import load_bundle

        bundle = load_bundle(path)
        model = bundle.model()

        def attach(tell: Tell) -> tuple[Any, str]:
            built = bundle.attach(model, partial(tell_tokens, tell))
            return model, cost_line(model, built)

        return model, [Later("datastore", attach)] if datastore else []

    return load
