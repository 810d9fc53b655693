"""The files of a bundle that a static Space's page loads to answer in the visitor's browser.

They are the bundle's own bytes; files above PART_BYTES are cut into parts, because plain git on the
Hub refuses larger ones. The page checks every file's sha256.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from mlpmem.loading.manifest import asks_questions, checked_manifest

PART_BYTES = 8_000_000
FILES = (
    "decoder/config.json", "decoder/tokenizer.json", "decoder/tokenizer_config.json",
    "decoder/model.safetensors", "memory/config.json", "memory/model.safetensors",
    "router/memory/config.json", "router/memory/model.safetensors",
)  # fmt: skip
FAMILIES = ("llama",)  # of decoders and memories that ui/static/live runs
FOLDER = "model"  # of the site


def write(bundle: Path, folder: Path) -> dict[str, Any] | None:
    """Write a bundle's files below folder and return their listing, `Live` of live/types.d.ts.

    None, without files, for a bundle whose decoder or memory does not run in a browser.
    """
    manifest = checked_manifest(bundle)
    if not _runs(bundle, manifest):
        return None
    names = [name for name in FILES if name in manifest["files"]]
    files = {name: _listed(bundle / name, name, folder, manifest["files"][name]) for name in names}
    hashes = "".join(file["sha256"] for file in files.values())
    return {
        "version": hashlib.sha256(hashes.encode()).hexdigest()[:16],
        "name": str(manifest.get("name") or ""),
        "files": files,
        "settings": manifest["settings"],
        "questions": asks_questions(manifest),
        "chat": not _has_template(bundle, manifest),
        "eos": _ends(bundle, manifest),
    }


def _runs(bundle: Path, manifest: dict) -> bool:
    """Return whether live/ can read a bundle's decoder and memory."""
    if not {*FILES[:4]} <= manifest["files"].keys():
        return False
    decoder = _json(bundle, manifest, "decoder/config.json").get("model_type")
    memory = _json(bundle, manifest, "memory/config.json")
    router = _json(bundle, manifest, "router/memory/config.json")
    reads_more = memory.get("context") or router.get("state_size")  # than live/ computes
    families = decoder, memory.get("family", FAMILIES[0])
    return not reads_more and all(family in FAMILIES for family in families)


def _has_template(bundle: Path, manifest: dict) -> bool:
    """Return whether a decoder has a chat template, which the page cannot render."""
    config = _json(bundle, manifest, "decoder/tokenizer_config.json")
    return "chat_template" in config or "decoder/chat_template.jinja" in manifest["files"]


def _json(bundle: Path, manifest: dict, name: str) -> dict:
    """Return an object of a bundle's listed file, {} without one."""
    return json.loads((bundle / name).read_text("utf-8")) if name in manifest["files"] else {}


def _listed(path: Path, name: str, folder: Path, expected: dict) -> dict[str, Any]:
    """Write a file's parts and return its entry; a part's name has the file's hash."""
    data = path.read_bytes()
    parts = []
    for i, start in enumerate(range(0, len(data), PART_BYTES)):
        place = f"{FOLDER}/{name.replace('/', '-')}.{expected['sha256'][:8]}.{i}.bin"
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(data[start : start + PART_BYTES])
        parts.append(place)
    return {"bytes": len(data), "sha256": expected["sha256"], "parts": parts}


def _ends(bundle: Path, manifest: dict) -> list[int]:
    """Return the token ids that end an answer, of all files that name some."""
    found: set[int] = set()
    for name in ("generation_config", "config"):
        named = _json(bundle, manifest, f"decoder/{name}.json").get("eos_token_id")
        found |= {named} if isinstance(named, int) else set(named or ())
    return sorted(found)
