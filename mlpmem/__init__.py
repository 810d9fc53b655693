"""MLP Memory: a frozen decoder, its kNN datastore, and a memory trained to answer like it.

Letters of shapes, the same everywhere: B batch, T tokens, D hidden size, V vocabulary,
N datastore entries, K neighbours, S support of a sparse target.

    import mlpmem
    model = mlpmem.load()                     # the embedded bundle, or a bundle's path
    trace = model.generate("Question: What is the capital of Peru? Answer:", system="memory")

Importing this package imports nothing heavy; `load` does.

Imports run downwards only, deferred ones too; rooms of one line do not import one another:

    space             folders for Hugging Face Spaces
    ui, hf, bench     the page; transformers and lm_eval; what answering costs
    results           what was measured, as plain values
    loading           from folders and the Hub to a model
    api               Model: everything that can be asked, with its parameters
    engine            the path of a token
    retrieval         the datastore and its search
    model             decoder, memory, tokenizer
    fast              decoding made fast
    formats, errors   what outside files are; the one exception

Open api.py first, then engine/fused.py.
"""

import threading
from functools import partial
from typing import TYPE_CHECKING

from mlpmem.errors import MlpMemError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch

    from mlpmem.api import Model
    from mlpmem.engine.settings import Settings

__all__ = ["MlpMemError", "load"]


def load(
    bundle: "str | Path | None" = None,
    *,
    decoder: "str | Path | None" = None,
    memory: "str | Path | None" = None,
    text: "str | Path | Sequence[str | Path] | None" = None,
    datastore: bool | str = True,
    depth: int | None = None,
    settings: "Settings | None" = None,
    retriever: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    progress: "Callable[[int, int], None] | None" = None,
) -> "Model":
    """Return a model: of a bundle's folder (the embedded one by default), a preset, or of parts.

    A preset is a name of presets.PRESETS, downloaded at its first use; with it text= is optional.
    With decoder=, memory= and text= are optional parts. datastore=False leaves a bundle's
    datastore out, "background" attaches it from a thread while decoder and memory answer.
    progress(done, total) counts tokens while keys are built. dtype "float32", "bfloat16" (half the
    bytes), "int8" (a quarter, less exact) or "int4" lays the weights out for decoding on a CPU,
    "auto" takes what is fastest here for a decoder; None leaves them plain.
    """
    if dtype == "auto":
        if decoder is None:
            dtype = None  # a bundle, or a preset, is served as it was measured
        else:
            from mlpmem.loading.hub import fetch
            from mlpmem.loading.parts import form_for

            decoder = fetch(decoder, "decoder") if isinstance(decoder, str) else decoder
            dtype = form_for(decoder)
    read, bits = (None, 0) if dtype is None else _form(dtype)
    weights = {} if read is None else {"dtype": read, "pack": True, "bits": bits}
    options = {"depth": depth, "settings": settings, "retriever": retriever, "device": device}
    options |= {"progress": progress} | weights
    if decoder is not None:
        from mlpmem.loading.parts import from_parts

        if bundle is not None:
            raise MlpMemError("load: a bundle and a decoder were given; give one of them")
        return from_parts(decoder, memory, text, **options)
    if memory is not None:
        raise MlpMemError("load: a memory needs the decoder it belongs to; give decoder=...")
    from mlpmem.loading.presets import PRESETS, open_preset

    if str(bundle) in PRESETS:
        options = {name: value for name, value in options.items() if value is not None}
        return open_preset(str(bundle), text=text, **options)
    if text is not None:
        raise MlpMemError(
            "load: text needs the decoder that reads it; give decoder=... or a preset"
        )
    if datastore not in (True, False, "background"):
        raise MlpMemError(f'load: datastore is {datastore!r}; use True, False or "background"')
    from mlpmem.loading.bundle import load_bundle, preset_path

    opened = load_bundle(preset_path(bundle))
    model = opened.model(device, **weights)
    if settings is not None:
        model.settings = settings
    attach = partial(opened.attach, model, progress, retriever=retriever)
    if datastore == "background":
        threading.Thread(target=attach, daemon=True).start()
    elif datastore:
        attach()
    return model


def _form(name: str) -> "tuple[torch.dtype, int]":
    """Return a form of weights by its name; MlpMemError where it is none that answers here."""
    from mlpmem.fast.linear import form_of

    return form_of(name)
