"""Who can be asked: the systems of a bundle, a run or of parts, by name.

"lm", "memory", "knn" and "mixed" are columns of the model, "auto" is its memory (and "auto_knn" and
"auto_mixed" the others) under the router's lambda. "rag" is the decoder with passages before the
prompt, "rag_memory" the same with a memory. Of a run, "finetuned" and "lora" are the kept best
settings, and "memory_NAME" a memory of its controls.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch

from mlpmem.adapters import load_adapter
from mlpmem.bundle import load_bundle, preset_path
from mlpmem.datastore import Datastore
from mlpmem.decoder import Decoder
from mlpmem.errors import MlpMemError
from mlpmem.fused import FusedModel
from mlpmem.memory import Memory
from mlpmem.parts import from_parts
from mlpmem.rag import LAYOUTS, Passages, Rag
from mlpmem.retriever import Neighbours, writable
from mlpmem.settings import Settings, default_settings
from mlpmem.systems import LABELS, Column, System
from mlpmem.trace import AUTO, PARTS
from train.files import read_json
from train.search import BulkSearch
from train.stage import finished_manifest

CONTROL = "memory_"  # before a control's name


@dataclass(frozen=True)
class Sources:
    """Where systems come from."""

    bundle: str | None = None  # folder or preset
    decoder: str | None = None  # folder or hub id, instead of a bundle
    memory: str | None = None  # likewise
    text: Sequence[str] = ()  # the datastore's and retrieval's, for a decoder
    run: Path | None = None  # a recipe's folder: tuned decoders, controls
    lmbda: float | None = None  # None: the bundle's or the memory's own
    passages: int = 1  # before a prompt
    layout: str = LAYOUTS[0]


class Bulk:
    """The bulk search as a retriever: exact, and fast for many queries at once."""

    holds_keys = True

    def __init__(self, keys, device) -> None:
        """Prepare keys (N, D)."""
        keys = torch.as_tensor(writable(keys))
        self._search, self.bytes = BulkSearch(keys, device), keys.nbytes

    def search(self, queries: torch.Tensor, k: int) -> Neighbours:
        """Return the k nearest keys of queries (Q, D)."""
        found = [(d, i) for _, d, i in self._search.search(queries, k)]
        return Neighbours(torch.cat([i for _, i in found]), torch.cat([d for d, _ in found]))


class Cast:
    """Systems made when they are asked for; decoder, memory and datastore are shared."""

    def __init__(self, sources: Sources) -> None:
        """Remember where they come from; MlpMemError for two places at once."""
        if sources.decoder and sources.bundle:
            raise MlpMemError("a bundle and a decoder were given; give one of them")
        if (sources.memory or sources.text) and not sources.decoder:
            raise MlpMemError("a memory or a text needs its decoder; give --decoder too")
        self.sources = sources

    @property
    def makers(self) -> dict[str, Callable[[], System]]:
        """Return {name: function that makes it} of all there are here."""
        found: dict[str, Callable[[], System]] = {"lm": partial(self._column, "lm")}
        if self.model.memory is not None:
            found["memory"] = partial(self._column, "memory")
        if self._bundle is not None or self.sources.text:
            found |= {"knn": partial(self._column, "knn"), "rag": partial(self._rag, "lm")}
            if self.model.memory is not None:
                found["mixed"] = partial(self._column, "mixed")
                found["rag_memory"] = partial(self._rag, "memory")
        for system in self.model.routers:
            name = AUTO if system == "memory" else f"{AUTO}_{system}"
            found[name] = partial(self._column, system, AUTO, name)
        for name, row in self._tuned.items():
            found[name] = partial(self._tuned_decoder, name, row)
        for row in self._controls:
            found[f"{CONTROL}{row['name']}"] = partial(self._control, row)
        return found

    def systems(self, names: Sequence[str]) -> list[System]:
        """Return the systems of these names, all for none; MlpMemError for one that is not here."""
        makers = self.makers
        for name in names:
            if name not in makers:
                raise MlpMemError(
                    f"system {name!r} is not here, there is {', '.join(makers)}; tuned decoders "
                    "and controls come with --run, retrieval and kNN with a bundle or --text"
                )
        return [makers[name]() for name in names or makers]

    @cached_property
    def _bundle(self):
        """Return the bundle, None where parts were given."""
        return None if self.sources.decoder else load_bundle(preset_path(self.sources.bundle))

    @cached_property
    def model(self) -> FusedModel:
        """Return decoder and memory, and with parts the datastore of the text."""
        s = self.sources
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if self._bundle is None:
            return from_parts(s.decoder, s.memory, s.text or None, device=device)
        return self._bundle.model(device)

    @cached_property
    def _searched(self) -> tuple[Datastore, Bulk]:
        """Return the datastore, and its search in bulk."""
        attached = self._bundle.attach(self.model) if self._bundle is not None else self.model
        store = attached.datastore
        return store, Bulk(store.keys, self.model.decoder.device)

    @cached_property
    def _passages(self) -> Passages:
        """Return the index of the corpus's passages."""
        if self._bundle is not None:
            return Passages(self._bundle.documents(), self.model.decoder)
        return Passages(self.model.datastore.documents, self.model.decoder)

    @property
    def _tuned(self) -> dict[str, dict]:
        """Return the kept rows of the run's stage finetuned, as "finetuned" and "lora"."""
        folder = self.sources.run / "finetuned" if self.sources.run else None
        if folder is None or not (folder / "finetuned.json").is_file():
            return {}
        rows = read_json(folder / "finetuned.json")
        kept = [row for row in rows if (folder / row["name"]).is_dir()]
        return {("lora" if row["rank"] else "finetuned"): row for row in kept}

    @property
    def _controls(self) -> list[dict]:
        """Return the rows of the run's stage controls."""
        path = self.sources.run / "controls" / "controls.json" if self.sources.run else None
        return read_json(path) if path is not None and path.is_file() else []

    def _column(self, system: str, lmbda: float | str | None = None, name: str = "") -> Column:
        """Return a column of the model, with nothing beside it that it does not need."""
        model = self.model.only(system)
        if "knn" in PARTS[system]:
            model.attach_datastore(*self._searched)
        lmbda = self.sources.lmbda if lmbda is None else lmbda
        label = f"{LABELS[system]}, lambda by token" if lmbda == AUTO else ""
        return Column(model, system, lmbda, name, label, self._seconds(system))

    def _seconds(self, system: str) -> float:
        """Return what a run's stages took for a system beyond the decoder, 0 where not known."""
        stages = {"memory": ("datastore", "targets", "memory"), "knn": ("datastore",)}
        stages["mixed"] = stages["memory"]
        folders = [self.sources.run / s for s in stages.get(system, ())] if self.sources.run else []
        manifests = filter(None, map(finished_manifest, folders))
        return sum(manifest["seconds"] for manifest in manifests)

    def _rag(self, inner: str) -> Rag:
        """Return a column with passages before the prompt."""
        name = "rag" if inner == "lm" else f"rag_{inner}"
        s = self.sources
        return Rag(self._column(inner), self._passages, s.passages, s.layout, name)

    def _tuned_decoder(self, name: str, row: dict) -> Column:
        """Return the decoder of a kept setting."""
        folder, base = self.sources.run / "finetuned" / row["name"], self.model.decoder
        if row["rank"]:
            decoder = load_adapter(Decoder.load(self.sources.run / "decoder"), folder)
        else:
            decoder = Decoder.load(folder, depth=base.depth)
        decoder.model.to(base.device)
        model = FusedModel(decoder, None, None, row["name"])
        return Column(model, "lm", name=name, label=row["label"], seconds=row["seconds"])

    def _control(self, row: dict) -> Column:
        """Return the decoder with a memory of the controls, at the lambda chosen for it."""
        memory = Memory.load(self.sources.run / "controls" / row["name"])
        memory = memory.to(self.model.decoder.device).float()
        settings: Settings = default_settings(memory)
        model = FusedModel(self.model.decoder, memory, settings, row["name"])
        lmbda = row["lmbda"] if self.sources.lmbda is None else self.sources.lmbda
        name = f"{CONTROL}{row['name']}"
        return Column(model, "memory", lmbda, name, row["label"], row["seconds"])
