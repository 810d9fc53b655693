"""A model of parts: any decoder, a memory made for it, a datastore of your own text files.

Temperature and lambda of kNN are chosen on the text. A sample of positions is searched without the
passage they stand in, so the choice holds for text that the datastore lacks. Distances differ by
orders of magnitude between decoders, so no fixed temperature fits all.
"""

import logging
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
from mlpmem.fast.devices import calibrate, first_device
from mlpmem.fast.linear import bfloat16_is_faster
from mlpmem.fast.llama_pass import compiles
from mlpmem.formats import is_gguf
from mlpmem.loading.capacity import check_room, parameters_in
from mlpmem.loading.hub import Tell, fetch
from mlpmem.model.decoder import Decoder
from mlpmem.model.gguf import read_header
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
    """Return a model of a decoder with, each optional, a memory and a datastore of text files.

    Decoder and memory are folders, or Hub ids fetched here; tell hears of downloads (hub.fetch).
    options are open_folders'.
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
    """Return a model of folders, as from_parts does, ready to answer.

    Weights are held in dtype; MlpMemError, before anything is read, where they do not fit. depth is
    the memory's where there is one, else given or the last layer. Without settings or a memory,
    lambda and temperature of kNN are chosen on the text. progress(done, total) counts tokens while
    keys are built. pack then lays the weights out for decoding on a CPU; bits are linear.pack's.
    """
    given = {"decoder": decoder, "memory": memory}
    folders = {what: Path(s) for what, s in given.items() if isinstance(s, str | Path)}
    sizes = {k: parameters_in(f, str(first_device(device)) == "cpu") for k, f in folders.items()}
    check_room(sizes, dtype, device)
    held = {"dtype": dtype, "device": device}
    if "memory" in folders:
        memory = Memory.load(folders["memory"], depth=depth, **held)
    if "decoder" in folders:
        chosen = memory.config.depth if memory is not None else -1 if depth is None else depth
        decoder = Decoder.load(folders["decoder"], depth=chosen, **held)
    model = Model(decoder, memory, settings, "parts")
    if text is not None:
        built = attach_text(model, text, retriever, progress, tune=settings is None)
        if built.warning:
            log.warning("datastore: %s", built.warning)
    if pack:
        return model.pack(bits)
    calibrate(model.decoder)
    return model


def form_for(decoder: str | Path) -> str:
    """Return the form of weights that suits a brought decoder on this CPU, a name of FORMS.

    4-bit blocks stay what they are where compiled code can read them; else bfloat16 where the
    processor multiplies it faster than float32, as measured.
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
    """Give a model a datastore of text files, built here or cached; progress as in from_parts.

    text is files, folders and patterns. Returns what it took; its warning says what was left out.
    With tune, lambda and temperature of kNN are chosen on the text; where there is a memory, k and
    temperature are those that it was trained to imitate.
    """
    sources, counts = [text] if isinstance(text, str | Path) else text, Counter()
    documents = read_text(model.decoder, sources, counts=counts)
    label = label_of(model.decoder, documents)
    built = build_or_read(model.decoder, documents, label, progress=progress)
    search = make_retriever(retriever, built.datastore.keys)
    if tune:
        model.settings = tuned(model, make_store(model.decoder, built.datastore, search))
    model.attach_datastore(built.datastore, search)
    return replace(built, warning="; ".join(filter(None, (built.warning, noted(counts)))))


PASSAGES, POSITIONS = 16, 256  # asked at most
FEWEST = 8  # passages; of fewer, too little is left without one
SCALES = tuple(2.0**i for i in range(-6, 3))  # of the neighbours' mean distance: temperatures
LMBDAS = lambda_grid(20)[1:-1]  # a mix: neither source alone


def tuned(model: Model, store: Store, seed: int = 0) -> Settings:
    """Return the model's settings with the temperature and the lambda that suit a store best.

    Best is the lowest mean nll (nats) of the positions asked. A model with a memory keeps its
    temperature, which the memory imitates. A store of too few passages leaves all as it is.
    """
    entries = _sample(store.datastore, seed)
    if not len(entries):
        return model.settings
    lm, distances, right, counts = _asked(model, store, entries)
    near = float(distances[distances.isfinite()].mean())
    best = (np.inf, model.settings.knn_temperature, model.settings.of("knn"))
    tried = [scale * near for scale in SCALES if near > 0]
    for temperature in tried if model.memory is None else [model.settings.knn_temperature]:
        values = torch.where(distances.isfinite(), 0, -1)  # -1 is no neighbour
        knn = (knn_weights(distances, values, counts, temperature) * right).sum(1)
        for lmbda in LMBDAS:
            nll = float(mix_nll(lm, -knn.log(), lmbda).mean())
            best = min(best, (nll, temperature, lmbda))
    lmbdas = {**model.settings.lmbda, "knn": best[2]}
    return replace(model.settings, knn_temperature=best[1], lmbda=lmbdas)


def _sample(datastore: Datastore, seed: int) -> np.ndarray:
    """Return entries (Q,) of a few passages, as few as a quarter of them; none where too few."""
    documents, rng = datastore.documents, np.random.default_rng(seed)
    count = len(documents.offsets) - 1
    if count < FEWEST:
        return np.empty(0, np.int64)
    chosen = rng.choice(count, min(PASSAGES, count // 4), replace=False)
    there = np.flatnonzero(np.isin(documents.passage_at(datastore.positions), chosen))
    return np.sort(rng.choice(there, min(POSITIONS, len(there)), replace=False))


@torch.inference_mode()
def _asked(
    model: Model, store: Store, entries: np.ndarray
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return of entries (Q,): the decoder's nll (Q,) in nats, and of the neighbours (Q, K) their
    distances, whether they have the true token, and counts. Own passages are infinitely far.
    """
    datastore, k = store.datastore, model.settings.k
    documents, positions = datastore.documents, datastore.positions[entries]
    own = documents.passage_at(positions)
    longest = int(np.diff(documents.offsets)[own].max())
    lm = torch.empty(len(entries))
    distances = torch.empty(len(entries), min(len(datastore), k + longest))
    indices = distances.long()
    true = store.values[entries]
    for places in forward_positions(model.decoder, documents, positions):
        nll = -places.logits.float().log_softmax(-1)
        lm[places.at] = nll.gather(1, true[places.at, None].to(nll.device))[:, 0].cpu()
        found = store.search(places.hidden.float(), distances.shape[1])
        indices[places.at], distances[places.at] = found.indices.cpu(), found.distances.cpu()
    passages = documents.passage_at(datastore.positions[indices.clamp_min(0).numpy()])
    same = torch.from_numpy(passages == own[:, None]) | (indices < 0)
    distances, order = distances.masked_fill(same, torch.inf).sort(dim=1, stable=True)
    indices = indices.gather(1, order)[:, :k].clamp_min(0)
    values, counts = store.values.cpu(), store.counts.cpu()
    return lm, distances[:, :k], values[indices] == true.cpu()[:, None], counts[indices]
