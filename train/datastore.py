"""Stage datastore: the decoder over the memory's documents -> a key for every entry."""

import numpy as np
from tqdm import tqdm

from mlpmem.datastore import Datastore, build_keys
from mlpmem.decoder import Decoder
from mlpmem.documents import Documents, entries
from train.stage import Context


def make_datastore(context: Context) -> dict:
    """Return counts; writes keys.npy, positions.npy, counts.npy and documents/."""
    folder = context.folder
    documents = Documents.load(context.inputs["corpus"] / "memory")
    decoder = Decoder.load(context.inputs["decoder"], depth=context.config.depth)
    positions, counts = entries(documents)
    shape = (len(positions), decoder.hidden_size)
    keys = np.lib.format.open_memmap(folder / "keys.npy", "w+", np.float16, shape)
    with tqdm(total=len(documents.tokens), desc="keys", unit="token", unit_scale=True) as bar:
        build_keys(decoder, documents, positions, keys, lambda done, _: bar.update(done - bar.n))
    keys.flush()
    del keys
    Datastore(np.load(folder / "keys.npy", mmap_mode="r"), positions, counts, documents)
    np.save(folder / "positions.npy", positions)
    np.save(folder / "counts.npy", counts)
    documents.save(folder / "documents")
    return {"tokens": len(documents.tokens), "entries": len(positions), "passages": len(documents)}
