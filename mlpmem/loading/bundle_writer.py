"""Write a bundle, and change the results or adapters of an existing one."""

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlpmem.engine.router import Router
from mlpmem.engine.settings import Settings
from mlpmem.errors import MlpMemError
from mlpmem.formats import ADAPTER_FILES
from mlpmem.loading.bundle import Bundle, load_bundle
from mlpmem.loading.decoder_file import DecoderFile
from mlpmem.loading.extra_columns import ExtraColumn, bundled, check_name
from mlpmem.loading.manifest import (
    FINGERPRINT,
    FORMAT,
    MANIFEST,
    QUESTIONS,
    list_files,
    read_manifest,
    refuse_link,
)
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory, check_binding
from mlpmem.retrieval.documents import Documents
from mlpmem.retrieval.key_cache import Fingerprint


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
    "Question: ... Answer:", "chat" for a memory of chats, else "text". A temporary sibling folder
    is written and then renamed.
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
        _write_content(staging, results or {}, examples, questions, traces)
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
        _publish(staging, folder, manifest)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Bundle(folder, manifest)


def _write_content(
    folder: Path,
    results: Any,
    examples: Sequence[Mapping],
    questions: Sequence[Mapping],
    traces: Sequence[Mapping],
) -> None:
    """Write what the page shows first."""
    write_json(folder / "results.json", results)
    write_json(folder / "examples.json", list(examples))
    write_json(folder / "questions.json", list(questions))
    for number, trace in enumerate(traces):
        write_json(folder / "traces" / f"{number:02d}.json", trace)


def _publish(staging: Path, folder: Path, manifest: dict) -> None:
    """Write the manifest, check the bundle and rename it to folder."""
    write_json(staging / MANIFEST, manifest, indent=1)
    for path in (staging, *staging.rglob("*")):  # created with private permissions
        path.chmod(0o755 if path.is_dir() else 0o644)
    load_bundle(staging)
    _replace(folder, staging)


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
    number, temporary = tempfile.mkstemp(prefix=f".{Path(name).name}-", dir=folder)
    os.close(number)
    write_json(Path(temporary), value, indent)
    Path(temporary).chmod(0o644)  # mkstemp creates private files
    Path(temporary).replace(folder / name)
