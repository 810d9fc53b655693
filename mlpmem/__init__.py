"""MLP Memory: a frozen decoder, its kNN datastore, and a memory trained to answer like it.

Letters of shapes, everywhere: B batch, T tokens, D hidden size, V vocabulary,
N datastore entries, K neighbours, S support of a sparse target.

    import mlpmem
    model = mlpmem.load()                     # the embedded bundle, or a bundle's path
    trace = model.generate("Question: What is the capital of Peru? Answer:", system="memory")

Importing this package is fast; `load` imports torch.

Imports run downwards only, deferred ones too; rooms on one line do not import one another:

    space             folders for Hugging Face Spaces
    ui, hf, bench     the page; transformers and lm_eval; the cost of an answer
    results           measurements, as plain values
    loading           from folders and the Hub to a model
    teaching          a copy of the memory learns new sentences
    api               Model: every call, with its parameters
    engine            the path of a token
    retrieval         the datastore and its search
    model             decoder, memory, tokenizer
    fast              decoding made fast
    formats, errors   checks of outside files; the one exception

Open api.py first, then engine/fused.py.
"""

from typing import TYPE_CHECKING, Any

from mlpmem.errors import MlpMemError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

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
    download: bool = False,
) -> "Model":
    """Return a model from a bundle (by default the embedded one), a preset, or parts.

    A bundle is a folder, or on the Hub "owner/name" or "owner/name@REVISION"; `model.source` is
    then its id and commit. The first download pins the commit; download=True asks for a newer one.

    Presets are "atlas" and "smollm2", which ship as bundles, and the names in presets.PRESETS,
    downloaded at their first use; text= may come with those. "smollm2" needs its decoder's file,
    from an installed package or the Hub's cache; download=True fetches it.
    With decoder=, the parts memory= and text= are optional. datastore=False loads a bundle without
    its datastore; "background" attaches it from a thread while decoder and memory already answer.
    progress(done, total) counts tokens while keys are built. dtype packs the weights for decoding
    on a CPU: "float32", "bfloat16" (half the bytes), "int8" (a quarter, less exact), "int4" (an
    eighth), or "auto": the fastest here for a decoder, and the page's own for a bundle. None does
    not pack them.
    """
    if dtype == "auto" and isinstance(decoder, str):
        from mlpmem.loading.hub import fetch

        decoder = fetch(decoder, "decoder")
    own_bits, weights = _weights(dtype, decoder)
    options = {"depth": depth, "settings": settings, "retriever": retriever, "device": device}
    options |= {"progress": progress} | weights
    if decoder is not None:
        from mlpmem.loading.parts import from_parts

        if bundle is not None:
            raise MlpMemError("load: bundle and decoder exclude each other; give only one of them")
        return from_parts(decoder, memory, text, **options)
    if memory is not None:
        raise MlpMemError("load: a memory needs the decoder it was trained with; give decoder=...")
    from mlpmem.loading.presets import PRESETS, open_preset

    if str(bundle) in PRESETS:
        options = {name: value for name, value in options.items() if value is not None}
        return open_preset(str(bundle), text=text, **options)
    if text is not None:
        raise MlpMemError(
            "load: text needs the decoder that reads it; give decoder=... or a preset"
        )
    if datastore not in (True, False, "background"):
        raise MlpMemError(f'load: datastore must be True, False or "background"; got {datastore!r}')
    options = {"device": device, "download": download, "own_bits": own_bits, **weights}
    opened, model = _open_bundle(bundle, options)
    if settings is not None:
        model.settings = settings
    if not opened.searches:
        return model
    if datastore == "background":
        opened.attach_in_background(model, progress, retriever)
    elif datastore:
        opened.attach(model, progress, retriever=retriever)
    return model


def _open_bundle(bundle: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    """Return a bundle, of a folder, a preset or the Hub, and its model without the datastore."""
    from mlpmem.loading.bundle import load_bundle, preset_path
    from mlpmem.loading.hub_bundle import fetch_bundle, is_hub_bundle

    on_hub = is_hub_bundle(bundle)
    newest = options["download"]
    folder = fetch_bundle(bundle, newest=newest) if on_hub else preset_path(bundle)
    opened = load_bundle(folder)
    model = opened.model(**options)
    if on_hub:
        model.source = f"{str(bundle).partition('@')[0]}@{folder.name}"
    return opened, model


def _weights(form: str | None, decoder: "str | Path | None") -> tuple[bool, dict[str, Any]]:
    """Return (whether a bundle's named file keeps its bits, options of weights in a form).

    MlpMemError for an unknown form.
    """
    if form == "auto" and decoder is None:
        return True, {}
    if form is None:
        return False, {}
    from mlpmem.fast.linear import form_of
    from mlpmem.loading.parts import form_for

    dtype, bits = form_of(form_for(decoder) if form == "auto" and decoder is not None else form)
    return False, {"dtype": dtype, "pack": True, "bits": bits}
