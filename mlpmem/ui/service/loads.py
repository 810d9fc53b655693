"""Loaders for the page's model: each `open_*` returns a `load` for Service."""

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlpmem.errors import MlpMemError
from mlpmem.formats import is_gguf
from mlpmem.loading.decoder_file import DecoderFile
from mlpmem.loading.manifest import read_manifest
from mlpmem.ui.service.service import BackgroundTask, Load, Needed, Tell


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
    """Return a `load` of a decoder and an optional memory, each a folder or a Hub id.

    Texts become a datastore and, with `train`, a memory, in the background. `form` is one of
    linear.FORMS; None keeps the dtype. Weights are packed for a CPU, unless `plain` is set and
    `form` is None: LoRA is merged into plain weights, which decode faster than with LoRA beside
    them. Those of a GGUF file are packed always.
    """

    def load(tell: Tell) -> tuple[Any, list[BackgroundTask]]:
        from mlpmem.loading.hub import fetch
        from mlpmem.loading.parts import form_for, open_folders

        folder, chosen = fetch(decoder, "decoder", tell=tell), form
        memory_folder = fetch(memory, "memory", tell=tell) if memory else None
        tell("reading the weights", None)
        if form is None and device == "cpu" and (is_gguf(folder) or not plain):
            chosen = form_for(folder)
        options = weight_options(chosen, plain)
        model = open_folders(folder, memory_folder, device=device, **options)
        sys.stderr.write(f"mlpmem: {weights_line(model, chosen)}\n")
        tasks = _texts(model, text)
        if train:
            packed, bits = options.get("pack", False), options.get("bits", 0)
            tasks.append(
                BackgroundTask("memory", partial(_distil, model, folder, text, packed, bits))
            )
        return model, tasks

    return load


MUCH = 0.1  # nats


def weights_line(model: Any, form: str | None) -> str:
    """Return a line on the form of a decoder's weights, and on a missing package for speed."""
    from mlpmem.fast.compiling import has_numba
    from mlpmem.fast.llama_pass import LlamaPass

    line = f"the decoder's weights are {form or 'plain'}, {megabytes(model.decoder.bytes)}"
    if kl := model.decoder.kl:
        line += f"; rounding them costs a KL of {kl:.4f} nats on a short text"
        line += ", so answers differ; --dtype bfloat16 is more exact" if kl > MUCH else ""
    compiles = isinstance(model.decoder.fast_pass, LlamaPass) or form == "int4"
    if compiles and not has_numba():
        line += "; generation is slower without numba: pip install numba"
    return line


def open_preset(
    name: str,
    text: Sequence[Path] = (),
    device: str = "cpu",
    form: str | None = None,
    plain: bool = False,
) -> Load:
    """Return a `load` of a preset, with a datastore of texts; for form, plain see open_parts."""

    def load(tell: Tell) -> tuple[Any, list[BackgroundTask]]:
        from mlpmem.loading import presets

        options = weight_options(form, plain)
        model = presets.open_preset(name, tell=tell, device=device, **options)
        return model, _texts(model, text)

    return load


def weight_options(form: str | None, plain: bool = False) -> dict[str, Any]:
    """Return the options of parts.open_folders for a form of weights; see open_parts."""
    if form is None:
        return {"pack": not plain}
    from mlpmem.fast.linear import form_of

    dtype, bits = form_of(form)
    return {"dtype": dtype, "pack": True, "bits": bits}


def _texts(model: Any, text: Sequence[Path]) -> list[BackgroundTask]:
    """Return the task that builds a datastore of text files, [] without any."""
    return [BackgroundTask("datastore", partial(_attach, model, text))] if text else []


def _attach(model: Any, text: Sequence[Path], tell: Tell) -> tuple[Any, str]:
    """Return (the model with a datastore of text files, a line on its cost)."""
    from mlpmem.loading.parts import attach_text

    built = attach_text(model, text, progress=partial(report_tokens, tell))
    return model, cost_line(model, built)


def _distil(
    model: Any, decoder: Path, text: Sequence[Path], packed: bool, bits: int, tell: Tell
) -> tuple[Any, str]:
    """Return (a model with a memory distilled from text files, a line on its cost)."""
    from mlpmem.loading.distil import distil

    begin = time.perf_counter()
    memory = distil(model, decoder, text, tell)
    if packed:
        model.pack_memory(memory, bits)
    model = model.with_memory(memory)
    duration = seconds_text(time.perf_counter() - begin)
    return model, f"memory trained in {duration}, {megabytes(model.memory.bytes)}"


def cost_line(model: Any, built: Any) -> str:
    """Return a line on the datastore's time and size, compared with the memory if there is one."""
    when = f"built in {seconds_text(built.seconds)}" + (" (cached)" if built.cached else "")
    line = f"datastore {when}, {megabytes(model.store.bytes)}"
    if model.memory is not None:
        line += f": the cost the {megabytes(model.memory.bytes)} memory removes"
    return f"{line}. {built.warning}" if built.warning else line


def seconds_text(seconds: float) -> str:
    """Return a duration in words."""
    return f"{seconds:.0f} s" if seconds >= 1 else "under a second"


def megabytes(size: int) -> str:
    """Return a size in bytes as MB or kB."""
    return f"{size / 1e6:,.0f}\u00a0MB" if size >= 1e6 else f"{size / 1e3:,.0f}\u00a0kB"


def report_tokens(tell: Tell, done: int, total: int) -> None:
    """Report how many of a datastore's tokens have keys."""
    share = done / total if total else 0.0
    tell(
        f"building the datastore: {100 * share:.0f}%, "
        f"{done / 1000:,.0f}k of {total / 1000:,.0f}k tokens",
        share,
    )


def open_bundle(path: str | Path | None, datastore: bool = True) -> Load:
    """Return a `load` of a bundle; heavy modules are imported when it runs."""

    def load(tell: Tell) -> tuple[Any, list[BackgroundTask]]:
        from mlpmem.loading.bundle import load_bundle

        bundle = load_bundle(path)
        model = bundle.model(own_bits=True)

        def attach(tell: Tell) -> tuple[Any, str]:
            built = bundle.attach(model, partial(report_tokens, tell))
            return model, cost_line(model, built)

        searches = datastore and bundle.searches
        return model, [BackgroundTask("datastore", attach)] if searches else []

    return load


def needed_by(path: Path) -> Needed | None:
    """Return the file that a bundle names and does not hold, None for other bundles.

    An unreadable manifest needs nothing; loading the bundle reports its error.
    """
    try:
        file = DecoderFile.named(read_manifest(path))
    except MlpMemError:
        return None
    if file is None:
        return None
    button = f"Download {file.bytes / 1e6:,.0f} MB" if file.hub else ""
    return Needed(file.missing, button, partial(file.find, True))
