"""MLP Memory: a frozen decoder, its kNN datastore, and a memory trained to answer like it.

Letters of shapes, the same everywhere: B batch, T tokens, D hidden size, V vocabulary,
N datastore entries, K neighbours, S support of a sparse target.

    import mlpmem
    model = mlpmem.load()                     # the embedded bundle, or a bundle's path
    trace = model.generate("Question: What is the capital of Peru? Answer:", system="memory")

Importing this package imports nothing heavy; `load` does.
"""

import threading
from typing import TYPE_CHECKING

from mlpmem.errors import MlpMemError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch

    from mlpmem.fused import FusedModel
    from mlpmem.settings import Settings

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
) -> "FusedModel":
    """Return a model: of a bundle (folder or preset, the embedded one by default), or of parts.

    With decoder=, memory= and text= are optional parts. datastore=False leaves a bundle's
    datastore out, "background" attaches it from a thread while decoder and memory answer.
    progress(done, total) counts tokens while keys are built. dtype "bfloat16" or "float32" lays
    the weights out for decoding on a CPU (bfloat16 in half the bytes); None leaves them plain.
    """
    options = {} if dtype is None else {"dtype": _dtype(dtype)}
    if decoder is not None:
        from mlpmem.parts import from_parts

        if bundle is not None:
            raise MlpMemError("load: a bundle and a decoder were given; give one of them")
        options |= {"depth": depth, "settings": settings, "retriever": retriever, "device": device}
        model = from_parts(decoder, memory, text, progress=progress, **options)
        return model if dtype is None else model.pack()
    if memory is not None or text is not None:
        raise MlpMemError("load: memory and text need the decoder they belong to; give decoder=...")
    if datastore not in (True, False, "background"):
        raise MlpMemError(f'load: datastore is {datastore!r}; use True, False or "background"')
    from mlpmem.bundle import load_bundle, preset_path

    opened = load_bundle(preset_path(bundle))
    model = opened.model(device, **options)
    if dtype is not None:
        model.pack()
    if settings is not None:
        model.settings = settings
    if datastore == "background":
        attach = threading.Thread(
            target=opened.attach,
            args=(model, progress),
            kwargs={"retriever": retriever},
            daemon=True,
        )
        attach.start()
    elif datastore:
        opened.attach(model, progress, retriever=retriever)
    return model


def _dtype(name: str) -> "torch.dtype":
    """Return the dtype of a name; MlpMemError where it is none that answers here."""
    from mlpmem.fastlinear import dtype_of

    return dtype_of(name)
