"""A bundle is a folder that serves. It is written whole or not at all, and checked when read.

manifest.json lists every file with size and sha256. decoder/, memory/ and documents/ hold the
models and texts, router/ the fitted routers, adapters/ tuned decoders. Results, examples and
recorded traces are what the page shows first. `key_cache.py` builds the keys, which are not stored.

`put_results` and `put_adapter` change an existing bundle.
"""

import copy
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlpmem.api import Model
from mlpmem.engine.router import Router, load_routers
from mlpmem.engine.settings import Settings
from mlpmem.errors import MlpMemError
from mlpmem.fast.devices import calibrate
from mlpmem.formats import ADAPTER_FILES, read_json
from mlpmem.loading.extra_columns import ExtraColumn, bundled, check_name
from mlpmem.loading.manifest import (
    AGAIN,
    FORMAT,
    MANIFEST,
    QUESTIONS,
    asks_questions,
    checked_manifest,
    list_files,
    listed_file,
    listed_part,
    read_manifest,
    refuse_link,
)
from mlpmem.loading.presets import PRESETS
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory, check_binding
from mlpmem.retrieval.documents import Documents
from mlpmem.retrieval.key_cache import Built, Fingerprint, build_or_read
from mlpmem.retrieval.retriever import make_retriever

TRACE = re.compile(r"traces/[^/]+\.json")


@dataclass(frozen=True)
class Bundle:
    """A checked folder; everything is read from it when asked for."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Return the bundle's name."""
        return str(self.manifest.get("name", self.folder.name))

    @cached_property
    def settings(self) -> Settings:
        """Return lambdas, k and temperatures chosen for this bundle."""
        try:
            return Settings(**self.manifest["settings"])
        except (KeyError, TypeError, AttributeError) as error:
            raise MlpMemError(
                f"bundle {self.folder.name}: its settings cannot be used ({error}); {AGAIN}"
            ) from error

    @property
    def adapters(self) -> list[ExtraColumn]:
        """Return the adapters of its decoder that it brings; MlpMemError for malformed ones."""
        return bundled(self.folder, self.manifest)

    def read_json(self, name: str) -> Any:
        """Return the value of one of its JSON files, such as "results.json"."""
        return read_json(listed_file(self.folder, self.manifest, name))

    def traces(self) -> list[dict]:
        """Return the recorded comparisons as plain values."""
        found = sorted(name for name in self.manifest["files"] if TRACE.fullmatch(name))
        return [self.read_json(name) for name in found]

    def documents(self) -> Documents:
        """Return the documents of the datastore."""
        with self._listed("documents") as place:
            return Documents.load(place)

    def model(
        self,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        pack: bool = False,
        bits: int = 0,
    ) -> Model:
        """Return decoder and memory as a model; its datastore is attached by `attach`.

        pack lays the weights out for decoding on a CPU; bits are linear.pack's.
        """
        with self._reading("decoder, memory or router"):
            with self._listed("memory") as place:
                memory = Memory.load(place, device=device, dtype=dtype)
            decoder = self._decoder(memory.config.depth, device=device, dtype=dtype)
            listed = {self.folder / name for name in self.manifest["files"]}
            routers = load_routers(self.folder / "router", listed)
            questions = asks_questions(self.manifest)
            model = Model(decoder, memory, self.settings, self.name, routers, questions)
            if pack:
                return model.pack(bits)
            calibrate(decoder)
            return model

    def _decoder(self, depth: int, **options: Any) -> Decoder:
        """Return the decoder; options are Decoder.load's."""
        with self._listed("decoder") as place:
            decoder = Decoder.load(place, depth=depth, **options)
        decoder.folder = self.folder / "decoder"
        return decoder

    def _listed(self, part: str) -> AbstractContextManager[Path]:
        """Return the folder of a part, with nothing in it that the manifest does not list."""
        return listed_part(self.folder, self.manifest["files"], part)

    @contextmanager
    def _reading(self, part: str) -> Iterator[None]:
        """Turn what libraries raise over a part into an MlpMemError.

        Its hashes were right, but a bundle made to harm has right hashes too, and the readers of
        configurations, tokenizers and weights each have errors of their own.
        """
        try:
            yield
        except MlpMemError:
            raise
        except Exception as error:
            raise MlpMemError(
                f"bundle {self.folder.name}: its {part} cannot be used ({type(error).__name__}); "
                f"{AGAIN}"
            ) from error

    def attach(
        self,
        model: Model,
        progress: Callable[[int, int], None] | None = None,
        stop: Callable[[], bool] | None = None,
        retriever: str | None = None,
    ) -> Built:
        """Build the keys, or read them from the cache, attach the datastore, say what it cost.

        Keys are float32's work whatever the model answers in, so that one cache serves all.
        """
        with self._reading("documents or fingerprint"):
            fingerprint = Fingerprint.load(
                listed_file(self.folder, self.manifest, "fingerprint.safetensors")
            )
            documents = self.documents()
        parts = ("decoder/", "documents/")
        digests = {n: f["sha256"] for n, f in self.manifest["files"].items() if n.startswith(parts)}
        label = hashlib.sha256(
            json.dumps([model.decoder.depth, digests], sort_keys=True).encode()
        ).hexdigest()[:16]
        decoder = model.decoder
        if decoder.model.dtype != torch.float32:
            decoder = self._decoder(decoder.depth, device=decoder.device)
        built = build_or_read(decoder, documents, label, fingerprint, progress=progress, stop=stop)
        model.attach_datastore(built.datastore, make_retriever(retriever, built.datastore.keys))
        return built


def default_bundle_path() -> Path:
    """Return where the embedded bundle is, in a clone or installed; MLPMEM_BUNDLE names another."""
    if named := os.environ.get("MLPMEM_BUNDLE"):
        return Path(named)
    clone = Path(__file__).parents[2] / "assets" / "atlas"
    return clone if clone.is_dir() else Path(__file__).parents[1] / "atlas"


def preset_path(name: str | Path | None) -> Path:
    """Return the folder of a preset's name or of a path; None is the embedded bundle."""
    if name is None or name == "atlas":
        return default_bundle_path()
    if not Path(name).exists():
        raise MlpMemError(
            f"bundle: {str(name)!r} is no folder here and no preset; presets are atlas, "
            f"{', '.join(PRESETS)}. Check the path, or load parts with decoder=..."
        )
    return Path(name)


def load_bundle(path: str | Path | None = None) -> Bundle:
    """Return the bundle of a folder (the embedded one by default) after checking every file.

    MlpMemError names the first file that is missing, truncated or altered and what to do, or what
    is wrong with its list of adapters.
    """
    folder = Path(path) if path is not None else default_bundle_path()
    manifest = checked_manifest(folder)
    bundled(folder, manifest)
    return Bundle(folder, manifest)


def save_bundle(
    folder: str | Path,
    *,
    decoder: Decoder,
    memory: Memory,
    documents: Documents,
    settings: Settings | Mapping[str, Any],
    fingerprint: Fingerprint | tuple[np.ndarray, np.ndarray],
    routers: Mapping[str, Router] | None = None,
    adapters: Sequence[ExtraColumn] = (),
    results: Any = None,
    examples: Sequence[Mapping] = (),
    questions: Sequence[Mapping] = (),
    traces: Sequence[Mapping] = (),
    attributions: Sequence[str] = (),
    name: str | None = None,
    form: str = QUESTIONS,
    created_with: Mapping[str, Any] | None = None,
) -> Bundle:
    """Write a bundle into folder, replacing one that is there, and return it, checked.

    Weights are stored in half precision. form is "questions" for a decoder that was trained on
    "Question: ... Answer:", else "text". It is written beside its place and renamed at the end.
    """
    folder = Path(folder).absolute()
    check_binding(memory.config, decoder)
    settings = settings if isinstance(settings, Settings) else Settings(**settings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_model(beside, decoder, memory, documents, fingerprint)
        for system, router in (routers or {}).items():
            router.save(beside / "router" / system)
        write_json(beside / "results.json", results or {})
        write_json(beside / "examples.json", list(examples))
        write_json(beside / "questions.json", list(questions))
        for number, trace in enumerate(traces):
            write_json(beside / "traces" / f"{number:02d}.json", trace)
        manifest = {
            "format": FORMAT,
            "name": name or folder.name,
            "form": form,
            "created_with": dict(created_with or {}),
            "settings": {**asdict(settings), "lmbda": dict(settings.lmbda)},
            "sizes": {"vocab_size": decoder.vocab_size, "hidden_size": decoder.hidden_size},
            "attributions": list(attributions),
        }
        if adapters:
            manifest["adapters"] = copy_adapters(beside, adapters)
        manifest["files"] = list_files(beside)
        write_json(beside / "manifest.json", manifest, indent=1)
        for path in (beside, *beside.rglob("*")):  # temporary folders and weights begin private
            path.chmod(0o755 if path.is_dir() else 0o644)
        load_bundle(beside)
        _replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Bundle(folder, manifest)


def _write_model(
    folder: Path, decoder: Decoder, memory: Memory, documents: Documents, fingerprint: Any
) -> None:
    """Write decoder/, memory/, documents/ and the fingerprint."""
    from safetensors.torch import save_file

    half = copy.deepcopy(decoder.model).to("cpu", torch.float16)
    half.save_pretrained(folder / "decoder")
    decoder.tokenizer.save_pretrained(folder / "decoder")
    memory.save(folder / "memory", torch.float16)
    documents.save(folder / "documents")
    indices, keys = fingerprint
    tensors = {"indices": torch.as_tensor(indices), "keys": torch.as_tensor(keys).half()}
    save_file(tensors, folder / "fingerprint.safetensors")


def _replace(beside: Path, folder: Path) -> None:
    """Put beside where folder is; the old one goes only once the new one stands."""
    if not folder.exists():
        beside.rename(folder)
        return
    old = beside.with_name(beside.name + ".old")
    folder.rename(old)
    beside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def put_results(folder: str | Path, results: Any) -> None:
    """Write a bundle's results.json anew, and its line in the manifest; MlpMemError for no bundle.

    A kill between the two leaves a bundle that says results.json is altered; do it again then.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    replace_json(folder, "results.json", results)
    listed = {"results.json": list_files(folder)["results.json"]}
    amended = manifest | {"files": manifest["files"] | listed}
    replace_json(folder, MANIFEST, amended, indent=1)


def put_adapter(folder: str | Path, adapter: ExtraColumn) -> None:
    """Copy an adapter into a bundle, in place of one of its name; MlpMemError for no bundle.

    Its weights are stored as they are. A kill half-way leaves files that no manifest lists, or,
    where one is replaced, a bundle that says it is altered; do it again then.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    listed = manifest.get("adapters", {}) | copy_adapters(folder, [adapter])
    names = [f"adapters/{adapter.name}/{name}" for name in ADAPTER_FILES]
    there = list_files(folder)
    files = manifest["files"] | {name: there[name] for name in names}
    amended = manifest | {"adapters": listed, "files": files}
    bundled(folder, amended)  # whatever would not be read is not written
    replace_json(folder, MANIFEST, amended, indent=1)


def copy_adapters(folder: Path, adapters: Iterable[ExtraColumn]) -> dict[str, dict]:
    """Return what a manifest says of adapters, their two files copied to adapters/NAME/."""
    listed = {}
    for adapter in adapters:
        check_name(adapter.name)
        place = folder / "adapters" / adapter.name
        refuse_link(folder, f"adapters/{adapter.name}")
        place.mkdir(parents=True, exist_ok=True)
        for name in ADAPTER_FILES:
            refuse_link(folder, f"adapters/{adapter.name}/{name}")
            shutil.copyfile(adapter.folder / name, place / name)
        listed[adapter.name] = {"label": adapter.label, "seconds": round(adapter.seconds, 1)}
    return listed


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write a value as JSON, the folder made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=indent), encoding="utf-8")


def replace_json(folder: Path, name: str, value: Any, indent: int | None = None) -> None:
    """Write a JSON file of a bundle at once, in place of the file or the link that is there."""
    number, beside = tempfile.mkstemp(prefix=f".{name}-", dir=folder)
    os.close(number)
    write_json(Path(beside), value, indent)
    Path(beside).chmod(0o644)  # temporary files begin private
    Path(beside).replace(folder / name)
