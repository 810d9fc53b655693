"""A bundle is a folder that serves. It is written completely or not at all, and checked when read.

manifest.json lists every file with size and sha256. decoder/, memory/ and documents/ hold the
models and texts, router/ the fitted routers, adapters/ tuned decoders. Results, examples and
recorded traces are what the page shows first. `key_cache.py` builds the keys, which are not stored.

A bundle may name its decoder's file instead (`decoder_file.py`). A bundle without a fingerprint has
no datastore: its documents are only read and searched by words.

`bundle_writer.py` writes bundles.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mlpmem.api import Model
from mlpmem.engine.router import load_routers
from mlpmem.engine.settings import Settings
from mlpmem.errors import MlpMemError
from mlpmem.fast.devices import calibrate
from mlpmem.fast.linear import form_of
from mlpmem.formats import read_json
from mlpmem.loading.decoder_file import DecoderFile
from mlpmem.loading.extra_columns import ExtraColumn, bundled
from mlpmem.loading.hub import Tell
from mlpmem.loading.manifest import (
    AGAIN,
    FINGERPRINT,
    asks_questions,
    checked_manifest,
    listed_file,
    listed_part,
)
from mlpmem.loading.parts import form_for
from mlpmem.loading.presets import PRESETS
from mlpmem.loading.shipped import SHIPPED, default_bundle_path, shipped_path
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
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
        own_bits: bool = False,
        download: bool = False,
        tell: Tell | None = None,
    ) -> Model:
        """Return decoder and memory as a model; `attach` adds the datastore.

        With pack, weights are laid out for decoding on a CPU; bits are those of linear.pack. With
        own_bits, a named file's 4-bit blocks are read as they are where that is fast. With
        download, a decoder that is only named may be downloaded; tell reports it.
        """
        file = self.decoder_file
        path = None if file is None else file.find(download, tell)
        on_cpu = torch.device(device).type == "cpu"
        if own_bits and on_cpu and path is not None and form_for(path) == "int4":
            (dtype, bits), pack = form_of("int4"), True
        with self._reading("decoder, memory or router"):
            with self._listed("memory") as folder:
                memory = Memory.load(folder, device=device, dtype=dtype)
            decoder = self._decoder(path, memory.config.depth, device=device, dtype=dtype)
            listed = {self.folder / name for name in self.manifest["files"]}
            routers = load_routers(self.folder / "router", listed)
            questions = asks_questions(self.manifest)
            model = Model(decoder, memory, self.settings, self.name, routers, questions)
            if not self.searches:
                model.documents = self.documents()
            if pack:
                return model.pack(bits)
            calibrate(decoder, memory)
            return model

    def _decoder(self, path: Path | None, depth: int, **options: Any) -> Decoder:
        """Return the decoder of a file, of the bundle's own folder without one."""
        if path is not None:
            return Decoder.load(path, depth=depth, **options)
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
            path = None if file is None else file.find()
            decoder = self._decoder(path, decoder.depth, device=decoder.device)
        built = build_or_read(decoder, documents, label, fingerprint, progress=progress, stop=stop)
        model.attach_datastore(built.datastore, make_retriever(retriever, built.datastore.keys))
        return built

    def attach_in_background(
        self,
        model: Model,
        progress: Callable[[int, int], None] | None = None,
        retriever: str | None = None,
    ) -> None:
        """Attach the datastore from a thread, which ends soon after the main one.

        The process waits for it: Python aborts a process that ends while a thread is within torch.
        """

        def work() -> None:
            try:
                self.attach(model, progress, lambda: not main.is_alive(), retriever)
            except MlpMemError:
                if main.is_alive():
                    raise

        main = threading.main_thread()
        threading.Thread(target=work, name="attach", daemon=False).start()


def preset_path(name: str | Path | None) -> Path:
    """Return the folder of a preset or path; None means the embedded bundle."""
    if name is None or name == "atlas":
        return default_bundle_path()
    if str(name) in SHIPPED and not Path(name).is_dir():
        return shipped_path(str(name))
    if not Path(name).exists():
        raise MlpMemError(
            f"bundle: {str(name)!r} is neither a local folder nor a preset; presets are "
            f"{', '.join((*SHIPPED, *PRESETS))}. Check the path, give a "
            "bundle of the Hub as owner/name, or load parts with decoder=..."
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
