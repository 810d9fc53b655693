"""A bundle is a folder that serves. It is written completely or not at all, and checked when read.

manifest.json lists every file with size and sha256. decoder/, memory/ and documents/ hold the
models and texts, router/ the fitted routers, adapters/ tuned decoders. Results, examples and
recorded traces are what the page shows first. `key_cache.py` builds the keys, which are not stored.

A bundle may name its decoder's file instead (`decoder_file.py`). A bundle without a fingerprint has
no datastore: its documents are only read and searched by words.

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
from mlpmem.loading.decoder_file import DecoderFile
from mlpmem.loading.extra_columns import ExtraColumn, bundled, check_name
from mlpmem.loading.hub import Tell
from mlpmem.loading.manifest import (
    AGAIN,
    FINGERPRINT,
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
from mlpmem.loading.shipped import SHIPPED, default_bundle_path, shipped_path
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory, check_binding
from mlpmem.retrieval.documents import Documents
from mlpmem.retrieval.key_cache import Built, Fingerprint, build_or_read
from mlpmem.retrieval.retriever import make_retriever

TRACE = re.compile(r"traces/[^/]+\.json")


@dataclass(frozen=True)
class Bundle:
    """A checked folder; each part is read on first use."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.manifest.get("name", self.folder.name))

    @cached_property
    def settings(self) -> Settings:
        try:
            return Settings(**self.manifest["settings"])
        except (KeyError, TypeError, AttributeError) as error:
            raise MlpMemError(
                f"bundle {self.folder.name}: its settings cannot be used ({error}); {AGAIN}"
            ) from error

    @property
    def decoder_file(self) -> DecoderFile | None:
        """Return the file that is this bundle's decoder, None if the bundle holds its decoder."""
        return DecoderFile.named(self.manifest)

    @property
    def searches(self) -> bool:
        """Return whether keys are built of the documents, for a datastore."""
        return FINGERPRINT in self.manifest["files"]

    @property
    def adapters(self) -> list[ExtraColumn]:
        """Return the adapters in the bundle; MlpMemError for malformed ones."""
        return bundled(self.folder, self.manifest)

    def read_json(self, name: str) -> Any:
        """Return the value of a listed JSON file, such as "results.json"."""
        return read_json(listed_file(self.folder, self.manifest, name))

    def traces(self) -> list[dict]:
        names = sorted(name for name in self.manifest["files"] if TRACE.fullmatch(name))
        return [self.read_json(name) for name in names]

    def documents(self) -> Documents:
        with self._listed("documents") as folder:
            return Documents.load(folder)

    def model(
        self,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        pack: bool = False,
        bits: int = 0,
        download: bool = False,
        tell: Tell | None = None,
    ) -> Model:
        """Return decoder and memory as a model; `attach` adds the datastore.

        With pack, weights are laid out for decoding on a CPU; bits are those of linear.pack. With
        download, a decoder that is only named may be downloaded; tell reports it.
        """
        if (file := self.decoder_file) is not None:
            file.find(download, tell)
        with self._reading("decoder, memory or router"):
            with self._listed("memory") as folder:
                memory = Memory.load(folder, device=device, dtype=dtype)
            decoder = self._decoder(memory.config.depth, device=device, dtype=dtype)
            listed = {self.folder / name for name in self.manifest["files"]}
            routers = load_routers(self.folder / "router", listed)
            questions = asks_questions(self.manifest)
            model = Model(decoder, memory, self.settings, self.name, routers, questions)
            if not self.searches:
                model.documents = self.documents()
            if pack:
                return model.pack(bits)
            calibrate(decoder)
            return model

    def _decoder(self, depth: int, **options: Any) -> Decoder:
        if (file := self.decoder_file) is not None:
            return Decoder.load(file.find(), depth=depth, **options)
        with self._listed("decoder") as folder:
            decoder = Decoder.load(folder, depth=depth, **options)
        decoder.folder = self.folder / "decoder"
        return decoder

    def _listed(self, part: str) -> AbstractContextManager[Path]:
        """Return the folder of a part, with only the files that the manifest lists."""
        return listed_part(self.folder, self.manifest["files"], part)

    @contextmanager
    def _reading(self, part: str) -> Iterator[None]:
        """Turn any error that a library raises while it reads a part into an MlpMemError.

        Hashes do not protect against a hostile bundle, and the readers of configurations,
        tokenizers and weights raise errors of many kinds.
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
        """Build the keys or read them from the cache, attach the datastore, return what it cost.

        MlpMemError for a bundle without a datastore. Keys are always computed in float32, so one
        cache serves models of every dtype.
        """
        with self._reading("documents or fingerprint"):
            fingerprint = Fingerprint.load(listed_file(self.folder, self.manifest, FINGERPRINT))
            documents = self.documents()
        parts = ("decoder/", "documents/")
        digests = {n: f["sha256"] for n, f in self.manifest["files"].items() if n.startswith(parts)}
        if (file := self.decoder_file) is not None:
            digests["decoder"] = file.sha256
        label = hashlib.sha256(
            json.dumps([model.decoder.depth, digests], sort_keys=True).encode()
        ).hexdigest()[:16]
        decoder = model.decoder
        if decoder.model.dtype != torch.float32:
            decoder = self._decoder(decoder.depth, device=decoder.device)
        built = build_or_read(decoder, documents, label, fingerprint, progress=progress, stop=stop)
        model.attach_datastore(built.datastore, make_retriever(retriever, built.datastore.keys))
        return built


def preset_path(name: str | Path | None) -> Path:
    """Return the folder of a preset or path; None means the embedded bundle."""
    if name is None or name == "atlas":
        return default_bundle_path()
    if str(name) in SHIPPED and not Path(name).is_dir():
        return shipped_path(str(name))
    if not Path(name).exists():
        raise MlpMemError(
            f"bundle: {str(name)!r} is neither a local folder nor a preset; presets are "
            f"{', '.join((*SHIPPED, *PRESETS))}. Check the path, or load parts with decoder=..."
        )
    return Path(name)


def load_bundle(path: str | Path | None = None) -> Bundle:
    """Return the bundle in a folder (default: the embedded one) after checking every file.

    MlpMemError names the first file that is missing, truncated or altered, or the fault in the list
    of adapters, and the next step.
    """
    folder = Path(path) if path is not None else default_bundle_path()
    manifest = checked_manifest(folder)
    bundled(folder, manifest)
    DecoderFile.named(manifest)
    return Bundle(folder, manifest)


def save_bundle(
    folder: str | Path,
    *,
    decoder: Decoder,
    memory: Memory,
    documents: Documents,
    settings: Settings | Mapping[str, Any],
    fingerprint: Fingerprint | tuple[np.ndarray, np.ndarray] | None = None,
    decoder_file: DecoderFile | None = None,
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
    """Write a bundle into folder, replacing any that exists, check it and return it.

    Weights are stored in half precision, those of a decoder only without `decoder_file`. Without
    fingerprint the bundle has no datastore. form is "questions" for a decoder that was trained on
    "Question: ... Answer:", "chat" for a memory of chats, else "text". A temporary
    sibling folder is written and then renamed.
    """
    folder = Path(folder).absolute()
    check_binding(memory.config, decoder)
    if decoder_file is not None and decoder.gguf_sha256 != decoder_file.sha256:
        raise MlpMemError(
            f"export: the decoder must come from {decoder_file.file}, which the bundle names; its "
            "weights are those of another file. Load it from that file"
        )
    settings = settings if isinstance(settings, Settings) else Settings(**settings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        if decoder_file is None:
            _write_decoder(staging, decoder)
        memory.save(staging / "memory", torch.float16)
        documents.save(staging / "documents")
        if fingerprint is not None:
            _write_fingerprint(staging, fingerprint)
        for system, router in (routers or {}).items():
            router.save(staging / "router" / system)
        write_json(staging / "results.json", results or {})
        write_json(staging / "examples.json", list(examples))
        write_json(staging / "questions.json", list(questions))
        for number, trace in enumerate(traces):
            write_json(staging / "traces" / f"{number:02d}.json", trace)
        manifest = {
            "format": FORMAT,
            "name": name or folder.name,
            "form": form,
            "created_with": dict(created_with or {}),
            "settings": {**asdict(settings), "lmbda": dict(settings.lmbda)},
            "sizes": {"vocab_size": decoder.vocab_size, "hidden_size": decoder.hidden_size},
            "attributions": list(attributions),
        }
        if decoder_file is not None:
            manifest["decoder"] = decoder_file.to_dict()
        if adapters:
            manifest["adapters"] = copy_adapters(staging, adapters)
        manifest["files"] = list_files(staging)
        write_json(staging / "manifest.json", manifest, indent=1)
        for path in (staging, *staging.rglob("*")):  # created with private permissions
            path.chmod(0o755 if path.is_dir() else 0o644)
        load_bundle(staging)
        _replace(folder, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Bundle(folder, manifest)


def _write_decoder(folder: Path, decoder: Decoder) -> None:
    half = copy.deepcopy(decoder.model).to("cpu", torch.float16)
    half.save_pretrained(folder / "decoder")
    decoder.tokenizer.save_pretrained(folder / "decoder")


def _write_fingerprint(folder: Path, fingerprint: Any) -> None:
    from safetensors.torch import save_file

    indices, keys = fingerprint
    tensors = {"indices": torch.as_tensor(indices), "keys": torch.as_tensor(keys).half()}
    save_file(tensors, folder / FINGERPRINT)


def _replace(folder: Path, staging: Path) -> None:
    """Rename staging to folder; the old folder is removed only after that."""
    if not folder.exists():
        staging.rename(folder)
        return
    old = staging.with_name(staging.name + ".old")
    folder.rename(old)
    staging.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def put_results(folder: str | Path, results: Any) -> None:
    """Replace a bundle's results.json and its manifest entry; MlpMemError without a manifest.

    A kill between the two writes leaves results.json reported as altered; call this again then.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    replace_json(folder, "results.json", results)
    listed = {"results.json": list_files(folder)["results.json"]}
    amended = manifest | {"files": manifest["files"] | listed}
    replace_json(folder, MANIFEST, amended, indent=1)


def put_adapter(folder: str | Path, adapter: ExtraColumn) -> None:
    """Copy an adapter into a bundle, replacing one of its name; MlpMemError without a manifest.

    Weights are copied unchanged. A kill half-way leaves files that no manifest lists or, if an
    adapter was replaced, a file reported as altered; call this again then.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    listed = manifest.get("adapters", {}) | copy_adapters(folder, [adapter])
    names = [f"adapters/{adapter.name}/{name}" for name in ADAPTER_FILES]
    present = list_files(folder)
    files = manifest["files"] | {name: present[name] for name in names}
    amended = manifest | {"adapters": listed, "files": files}
    bundled(folder, amended)  # checks the entries before they are written
    replace_json(folder, MANIFEST, amended, indent=1)


def copy_adapters(folder: Path, adapters: Iterable[ExtraColumn]) -> dict[str, dict]:
    """Copy the two files of each adapter to adapters/NAME/; return the manifest's entries."""
    listed = {}
    for adapter in adapters:
        check_name(adapter.name)
        target = folder / "adapters" / adapter.name
        refuse_link(folder, f"adapters/{adapter.name}")
        target.mkdir(parents=True, exist_ok=True)
        for name in ADAPTER_FILES:
            refuse_link(folder, f"adapters/{adapter.name}/{name}")
            shutil.copyfile(adapter.folder / name, target / name)
        listed[adapter.name] = {"label": adapter.label, "seconds": round(adapter.seconds, 1)}
    return listed


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=indent), encoding="utf-8")


def replace_json(folder: Path, name: str, value: Any, indent: int | None = None) -> None:
    """Write a JSON file of a bundle atomically, replacing an existing file or link."""
    number, temporary = tempfile.mkstemp(prefix=f".{name}-", dir=folder)
    os.close(number)
    write_json(Path(temporary), value, indent)
    Path(temporary).chmod(0o644)  # mkstemp creates private files
    Path(temporary).replace(folder / name)
