"""A model from separate parts: any decoder, its memory, and a datastore of your own text files.

The temperature and lambda of kNN are tuned on the text. Sampled positions are searched without
their own passage, so the choice holds for text outside the datastore. Distances differ by orders of
magnitude between decoders, so no fixed temperature fits all.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpmem.api import Model
from mlpmem.engine.distributions import knn_weights, mix_nll
from mlpmem.engine.settings import Settings, lambda_grid
from mlpmem.errors import MlpMemError
from mlpmem.fast.compiling import compiles
from mlpmem.fast.devices import calibrate, first_device
from mlpmem.fast.linear import bfloat16_is_faster
from mlpmem.formats import is_gguf, is_saved_store
from mlpmem.loading.capacity import check_room, parameters_in
from mlpmem.loading.hub import Tell, fetch
from mlpmem.model.decoder import Decoder
from mlpmem.model.gguf.reader import read_header
from mlpmem.model.memory import Memory
from mlpmem.retrieval.datastore import Datastore, Store, make_store
from mlpmem.retrieval.key_cache import Built, build_or_read, label_of
from mlpmem.retrieval.passages import forward_positions
from mlpmem.retrieval.retriever import make_retriever
from mlpmem.retrieval.texts import noted, read_text

log = logging.getLogger(__name__)


def from_parts(
    decoder: str | Path | Decoder,
    memory: str | Path | Memory | None = None,
    text: Sequence[str | Path] | str | Path | None = None,
    *,
    tell: Tell | None = None,
    **options: Any,
) -> Model:
    """Return a model of a decoder and, optionally, a memory and a datastore of text files.

    Decoder and memory are folders or Hub ids; tell reports downloads (see hub.fetch). options are
    those of open_folders.
    """
    if isinstance(decoder, str | Path):
        decoder = fetch(decoder, "decoder", tell=tell)
    if isinstance(memory, str | Path):
        memory = fetch(memory, "memory", tell=tell)
    if tell is not None:
        tell("reading the weights", None)
    return open_folders(decoder, memory, text, **options)


def open_folders(
    decoder: str | Path | Decoder,
    memory: str | Path | Memory | None = None,
    text: Sequence[str | Path] | str | Path | None = None,
    *,
    depth: int | None = None,
    settings: Settings | None = None,
    retriever: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    pack: bool = False,
    bits: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Model:
    """Return a model of local folders, as from_parts does for folders and Hub ids.

    Weights are held in dtype; if they do not fit, MlpMemError comes before anything is read. With a
    memory, depth is the memory's; otherwise it is the argument, by default the last layer. Without
    settings, kNN is tuned on the text (see attach_text). progress(done, total) counts tokens while
    keys are built. pack lays the weights out for decoding on a CPU; bits are those of linear.pack.
    """
    sources = {"decoder": decoder, "memory": memory}
    folders = {what: Path(s) for what, s in sources.items() if isinstance(s, str | Path)}
    sizes = {k: parameters_in(f, str(first_device(device)) == "cpu") for k, f in folders.items()}
    check_room(sizes, dtype, device)
    options = {"dtype": dtype, "device": device}
    if "memory" in folders:
        memory = Memory.load(folders["memory"], depth=depth, **options)
    if "decoder" in folders:
        layer = memory.config.depth if memory is not None else -1 if depth is None else depth
        decoder = Decoder.load(folders["decoder"], depth=layer, **options)
    model = Model(decoder, memory, settings, "parts")
    if text is not None:
        built = attach_text(model, text, retriever, progress, tune=settings is None)
        if built.warning:
            log.warning("datastore: %s", built.warning)
    if pack:
        return model.pack(bits)
    calibrate(model.decoder, model.memory)
    return model


def form_for(decoder: str | Path) -> str:
    """Return the fastest form of a decoder's weights on this CPU, a name of linear.FORMS.

    4-bit blocks keep their form if compiled code can read them. Otherwise the faster of bfloat16
    and float32 is chosen, as measured.
    """
    if is_gguf(decoder) and compiles():
        kinds = [place.kind.bits for place in read_header(decoder).places.values()]
        if kinds.count(4) > len(kinds) / 4:  # norms are not quantised, some layers may have more
            return "int4"
    return "bfloat16" if bfloat16_is_faster() else "float32"


def attach_text(
    model: Model,
    text: Sequence[str | Path] | str | Path,
    retriever: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    tune: bool = True,
) -> Built:
    """Attach a datastore of texts (files, folders, patterns), or a saved one; return its cost too.

    Keys are built or read from the cache; progress is that of open_folders. The warning names the
    files that were skipped, and why. With tune, lambda and temperature of kNN are tuned on the
    text; with a memory, k and temperature stay those that it was trained to imitate.
    """
    sources, counts = [text] if isinstance(text, str | Path) else text, Counter()
    failed: list[str] = []
    if any(map(is_saved_store, sources)):
        return _open(model, sources)
    documents = read_text(model.decoder, sources, counts=counts, failed=failed)
    label = label_of(model.decoder, documents)
    built = build_or_read(model.decoder, documents, label, progress=progress)
    search = make_retriever(retriever, built.datastore.keys)
    if tune:
        model.settings = tuned(model, make_store(model.decoder, built.datastore, search))
    model.attach_datastore(built.datastore, search)
    left_out = [f"left out: {why}" for why in failed]
    return replace(
        built, warning="; ".join(filter(None, (built.warning, noted(counts), *left_out)))
    )


def _open(model: Model, sources: Sequence[str | Path]) -> Built:
    """Attach a datastore that the page saved, with its gate; MlpMemError beside other texts."""
    if len(sources) > 1:
        raise MlpMemError(
            "text: a saved datastore stands alone; give it without other texts, or give the texts"
        )
    begin = time.perf_counter()
    _, store = model.open_store(sources[0])
    model.attach_store(store)
    return Built(store.datastore, time.perf_counter() - begin, cached=True)


PASSAGES, POSITIONS = 16, 256  # sampled at most
FEWEST = 8  # passages; with fewer, too little text is left for the search
SCALES = tuple(2.0**i for i in range(-6, 3))  # temperatures, times the neighbours' mean distance
LMBDAS = lambda_grid(20)[1:-1]  # without 0 and 1, which use one source only


def tuned(model: Model, store: Store, seed: int = 0) -> Settings:
    """Return the model's settings with the kNN temperature and lambda of the lowest nll.

    The nll (nats) is the mean over the sampled positions. With a memory, the temperature stays, as
    the memory imitates it. With fewer than FEWEST passages, the settings stay unchanged.
    """
    entries = _sample(store.datastore, seed)
    if not len(entries):
        return model.settings
    lm, distances, correct, counts = _search(model, store, entries)
    mean = float(distances[distances.isfinite()].mean())
    best = (np.inf, model.settings.knn_temperature, model.settings.of("knn"))
    grid = [scale * mean for scale in SCALES if mean > 0]
    for temperature in grid if model.memory is None else [model.settings.knn_temperature]:
        values = torch.where(distances.isfinite(), 0, -1)  # -1 marks a missing neighbour
        knn = (knn_weights(distances, values, counts, temperature) * correct).sum(1)
        for lmbda in LMBDAS:
            nll = float(mix_nll(lm, -knn.log(), lmbda).mean())
            best = min(best, (nll, temperature, lmbda))
    lmbdas = {**model.settings.lmbda, "knn": best[2]}
    return replace(model.settings, knn_temperature=best[1], lmbda=lmbdas)


def _sample(datastore: Datastore, seed: int) -> np.ndarray:
    """Return entries (Q,) of at most a quarter of the passages; none with fewer than FEWEST."""
    documents, rng = datastore.documents, np.random.default_rng(seed)
    count = len(documents.offsets) - 1
    if count < FEWEST:
        return np.empty(0, np.int64)
    chosen = rng.choice(count, min(PASSAGES, count // 4), replace=False)
    candidates = np.flatnonzero(np.isin(documents.passage_at(datastore.positions), chosen))
    return np.sort(rng.choice(candidates, min(POSITIONS, len(candidates)), replace=False))


@torch.inference_mode()
def _search(
    model: Model, store: Store, entries: np.ndarray
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the decoder's nll (Q,) in nats for entries (Q,), and their neighbours (Q, K).

    Neighbours come as distances, whether they have the true token, and counts. The distance to the
    entry's own passage is infinite.
    """
    datastore, k = store.datastore, model.settings.k
    documents, positions = datastore.documents, datastore.positions[entries]
    own = documents.passage_at(positions)
    longest = int(np.diff(documents.offsets)[own].max())
    lm = torch.empty(len(entries))
    distances = torch.empty(len(entries), min(len(datastore), k + longest))
    indices = distances.long()
    true = store.values[entries]
    for batch in forward_positions(model.decoder, documents, positions):
        nll = -batch.logits.float().log_softmax(-1)
        lm[batch.at] = nll.gather(1, true[batch.at, None].to(nll.device))[:, 0].cpu()
        found, _ = store.search(batch.hidden.float(), distances.shape[1])
        indices[batch.at], distances[batch.at] = found.indices.cpu(), found.distances.cpu()
    passages = documents.passage_at(datastore.positions[indices.clamp_min(0).numpy()])
    same = torch.from_numpy(passages == own[:, None]) | (indices < 0)
    distances, order = distances.masked_fill(same, torch.inf).sort(dim=1, stable=True)
    indices = indices.gather(1, order)[:, :k].clamp_min(0)
    values, counts = store.values.cpu(), store.counts.cpu()
    return lm, distances[:, :k], values[indices] == true.cpu()[:, None], counts[indices]
