"""Serve the page on ZeroGPU: the app.py of a Space built by `python -m mlpmem.space`.

Decoder, memory and datastore are placed on the GPU at import; each run is one short lease. Without
the package `spaces` or CUDA, the page runs on the CPU.
"""

import os
import sys

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("GRADIO_SSR_MODE", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["MLPMEM_RUNS"] = "1"  # one lease at a time

from mlpmem.ui.door import files  # noqa: E402

files.claim()  # before Gradio is imported, which reads GRADIO_TEMP_DIR

try:
    import spaces  # before torch: it emulates CUDA until a lease begins
except ImportError:
    spaces = None

from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402

from mlpmem.loading.bundle import load_bundle  # noqa: E402
from mlpmem.retrieval.retriever import ExactRetriever  # noqa: E402
from mlpmem.space.lease import LeasedModel, seconds  # noqa: E402
from mlpmem.ui import page  # noqa: E402
from mlpmem.ui.models import PageModel  # noqa: E402
from mlpmem.ui.recordings import recorded  # noqa: E402
from mlpmem.ui.service import offers  # noqa: E402
from mlpmem.ui.service.service import Service  # noqa: E402

BUNDLE = Path(os.environ.get("MLPMEM_BUNDLE") or Path(__file__).parent / "assets" / "atlas")

bundle = load_bundle(BUNDLE)
model = bundle.model()
built = bundle.attach(model, retriever="exact")
if spaces is not None and torch.cuda.is_available():
    placed = bundle.model("cuda")
    keys = ExactRetriever(built.datastore.keys, "cuda")
    placed.attach_datastore(built.datastore, keys)
    model = LeasedModel(model, placed, partial(spaces.GPU, duration=seconds))

if __name__ == "__main__":
    service = Service(lambda tell: (model, []), extras=offers.of_bundle(BUNDLE))
    sys.exit(page.serve([PageModel(service, recorded.read(BUNDLE))]))
