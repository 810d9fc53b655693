"""The systems to evaluate, by name: those of a bundle or of parts, and those of a run.

mlpmem.loading.registry has a model's systems. A run adds "finetuned" and "lora", its kept best
settings; "memory_NAME", the memories of its controls; and "plain", the decoder of RUN-plain. The
datastore is searched in bulk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from mlpmem.api import Model
from mlpmem.engine.trace import PARTS
from mlpmem.errors import MlpMemError
from mlpmem.loading import registry
from mlpmem.loading.bundle import Bundle, load_bundle, preset_path
from mlpmem.loading.extra_columns import ExtraColumn
from mlpmem.loading.parts import from_parts
from mlpmem.model.decoder import Decoder
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.retriever import BulkRetriever
from train.files import read_json
from train.run.stage import finished_manifest, plain_decoder

CONTROL = "memory_"  # prefix of a control's name
# a system's stages beyond the decoder
STAGES = {"memory": ("datastore", "targets", "memory"), "knn": ("datastore",)}


@dataclass(frozen=True)
class SystemSources:
    """Where systems come from."""

    bundle: str | None = None  # folder or preset
    decoder: str | None = None  # folder or Hub id, instead of a bundle
    memory: str | None = None  # likewise
    text: Sequence[str] = ()  # files of the datastore and of RAG, for a decoder
    run: Path | None = None  # a recipe's run folder: tuned decoders, controls
    lmbda: float | None = None  # None: the bundle's or the memory's own
    passages: Sequence[int] = (1,)  # retrieved passages: the first of "rag", the others of "rag_N"
    layout: str | None = None  # None: as the corpus; see Rag


class RunSystems(registry.SystemRegistry):
    """The systems of a model and of a run."""

    def __init__(self, sources: SystemSources) -> None:
        """Load decoder and memory; MlpMemError for sources that conflict."""
        s = sources
        if s.decoder and s.bundle:
            raise MlpMemError("--bundle and --decoder were both given; give only one")
        if (s.memory or s.text) and not s.decoder:
            raise MlpMemError("--memory and --text need their decoder; give --decoder too")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._run, self._bundle = s.run, None
        if s.decoder:
            model = from_parts(s.decoder, s.memory, s.text or None, device=device)
            documents = (lambda: model.datastore.documents) if s.text else None
        else:
            self._bundle: Bundle | None = load_bundle(preset_path(s.bundle))
            model, documents = self._bundle.model(device), self._bundle.documents
        columns = [*_tuned(s.run), *_controls(s.run), *_plain(s.run)] if s.run else []
        options = {"lmbda": s.lmbda, "passages": s.passages, "layout": s.layout}
        super().__init__(model, columns, documents, seconds=_seconds(s.run), **options)

    @property
    def searches(self) -> bool:
        """Return whether there is a datastore, or one can be built."""
        return self._bundle is not None or super().searches

    @cached_property
    def _bulk_datastore(self) -> tuple[Datastore, BulkRetriever]:
        """Return the datastore and its bulk retriever."""
        attached = self._bundle.attach(self.model) if self._bundle is not None else self.model
        store = attached.datastore
        return store, BulkRetriever(store.keys, self.model.decoder.device)

    def only(self, system: str) -> Model:
        """Return a model that computes only this system."""
        model = super().only(system)
        if "knn" in PARTS[system]:
            model.attach_datastore(*self._bulk_datastore)
        return model

    def base(self, column: ExtraColumn) -> Decoder:
        """Return the run's decoder, whose weights no bundle has rounded to half precision."""
        decoder = self.model.decoder
        return Decoder.load(self._run / "decoder", depth=decoder.depth, device=decoder.device)


def _tuned(run: Path) -> list[ExtraColumn]:
    """Return the kept settings of the stage finetuned, as "finetuned" and "lora"."""
    folder = run / "finetuned"
    path = folder / "finetuned.json"
    rows = read_json(path) if path.is_file() else []
    kinds = {True: ("lora", "adapter"), False: ("finetuned", "decoder")}
    kept = {kinds[bool(row["rank"])]: row for row in rows if (folder / row["name"]).is_dir()}
    return [
        ExtraColumn(name, folder / row["name"], kind, row["label"], row["seconds"])
        for (name, kind), row in kept.items()
    ]


def _controls(run: Path) -> list[ExtraColumn]:
    """Return the memories of the stage controls, each at its own lambda."""
    path = run / "controls" / "controls.json"
    return [
        ExtraColumn(f"{CONTROL}{row['name']}", path.parent / row["name"], "memory", row["label"],
              row["seconds"], row["lmbda"])
        for row in (read_json(path) if path.is_file() else [])
    ]  # fmt: skip


def _plain(run: Path) -> list[ExtraColumn]:
    """Return the decoder of RUN-plain, trained instead of decoder and memory, if it exists."""
    folder = plain_decoder(run)
    if folder is None:
        return []
    label, seconds = f"the decoder of {folder.parent.name}", finished_manifest(folder)["seconds"]
    return [ExtraColumn("plain", folder, "decoder", label, seconds)]


def _seconds(run: Path | None) -> dict[str, float]:
    """Return the seconds of each system's finished stages beyond the decoder."""
    seconds = {}
    for system, stages in (STAGES | {"mixed": STAGES["memory"]}).items():
        manifests = filter(None, (finished_manifest(run / s) for s in stages)) if run else ()
        seconds[system] = sum(manifest["seconds"] for manifest in manifests)
    return seconds
