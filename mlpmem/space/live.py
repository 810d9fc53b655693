"""The files of a bundle that a static Space's page loads to answer in the visitor's browser.

They are the bundle's own bytes, and those of the GGUF file that it may name (named.py); files above
PART_BYTES are cut into parts, because plain git on the Hub refuses larger ones. The page checks
every part's sha256. A large model is loaded only when a visitor asks for it. The page has decoders
and memories of FAMILIES; a GGUF file must be a Llama's. A bundle of another family stays a replay.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpmem.engine.general import ASKED, GENERAL
from mlpmem.errors import MlpMemError
from mlpmem.loading.decoder_file import DecoderFile
from mlpmem.loading.manifest import asks_chats, asks_questions, checked_manifest, listed_part
from mlpmem.space import general, named
from mlpmem.space.turns import turns_of

if TYPE_CHECKING:
    from mlpmem.model.decoder import Decoder

PART_BYTES = 8_000_000
ASKED_BYTES = 40_000_000  # a model above them is not loaded by itself
TOKENIZER = ("decoder/tokenizer.json", "decoder/tokenizer_config.json")
DECODER = ("decoder/config.json", *TOKENIZER, "decoder/model.safetensors")
MEMORY = ("memory/config.json", "memory/model.safetensors")
FILES = (*DECODER, *MEMORY, "router/memory/config.json", "router/memory/model.safetensors")
FAMILIES = ("llama", "gpt2")  # of decoders and memories: live/model/families.js has a row for each
FOLDER = "model"  # of the site


def write(bundle: Path, folder: Path) -> dict[str, Any] | None:
    """Write a bundle's files below folder and return their listing, `Live` of live/types.d.ts.

    None, without files, for a bundle that `obstacle` names a reason for.
    """
    manifest = checked_manifest(bundle)
    if obstacle(bundle, manifest):
        return None
    decoder = _decoder(bundle, manifest)
    sources, ends = _sources(bundle, manifest, decoder)
    turns, chats = _turns(decoder)
    asked = sum(map(_bytes, sources.values())) > ASKED_BYTES
    if asked and (turns is not None or not chats):
        sources[general.NAME] = general.states(decoder, asks_questions(manifest))
    files = {name: _listed(source, name, folder) for name, source in sources.items()}
    hashes = "".join(file["sha256"] for file in files.values())
    return {
        "version": hashlib.sha256(hashes.encode()).hexdigest()[:16],
        "name": str(manifest.get("name") or ""),
        "title": _title(manifest),
        "files": files,
        "settings": manifest["settings"],
        "questions": asks_questions(manifest),
        "chat": turns is not None or not chats,
        "turns": turns,
        "chats": turns is not None and asks_chats(manifest),
        "texts": {"general": GENERAL, "asked": ASKED},
        "asked": asked,
        "eos": ends,
    }


def obstacle(bundle: Path, manifest: dict) -> str:
    """Return why live/ cannot run a bundle's decoder and memory, "" if it can."""
    file = DecoderFile.named(manifest)
    needed = MEMORY if file else (*DECODER, *MEMORY[:1])
    if missing := {*needed} - manifest["files"].keys():
        return f"it has no {min(missing)}"
    family = _json(bundle, manifest, "memory/config.json").get("family", FAMILIES[0])
    if family not in FAMILIES:
        return f"its memory is of the family {family}, and only {_known()} do"
    if file is None:
        family = _json(bundle, manifest, "decoder/config.json").get("model_type")
        known = family in FAMILIES
        return "" if known else f"its decoder is of the family {family}, and only {_known()} do"
    try:
        return named.obstacle(file.find())
    except MlpMemError as error:
        return str(error)


def _known() -> str:
    return " and ".join(FAMILIES)


def _title(manifest: dict) -> str:
    """Return what a visitor calls the model: its file without the kind of its blocks."""
    file = DecoderFile.named(manifest)
    return re.split(r"[.](?:I?Q\d|gguf)", file.file)[0] if file else str(manifest.get("name") or "")


def _decoder(bundle: Path, manifest: dict) -> "Decoder":
    """Return a bundle's decoder, with the hidden state that its memory reads."""
    from mlpmem.model.decoder import Decoder

    depth = _json(bundle, manifest, "memory/config.json").get("depth", -1)
    if (file := DecoderFile.named(manifest)) is not None:
        return Decoder.load(file.find(), depth=depth)
    with listed_part(bundle, manifest["files"], "decoder") as folder:
        return Decoder.load(folder, depth=depth)


def _sources(
    bundle: Path, manifest: dict, decoder: "Decoder"
) -> tuple[dict[str, Path | bytes], list[int]]:
    """Return {name: a path, or bytes} of the page's files, and the ids that end an answer."""
    sources: dict[str, Path | bytes] = {n: bundle / n for n in FILES if n in manifest["files"]}
    if (file := DecoderFile.named(manifest)) is None:
        return sources, _ends(bundle, manifest, decoder)
    return named.files(file.find(), decoder) | sources, sorted(decoder.eos_ids)


def _turns(decoder: "Decoder") -> tuple[dict | None, bool]:
    """Return the texts around a chat's turns, None without any, and whether there is a template."""
    chats = bool(getattr(decoder.tokenizer, "chat_template", None))
    return (turns_of(decoder.tokenizer) if chats else None), chats


def _json(bundle: Path, manifest: dict, name: str) -> dict:
    """Return an object of a bundle's listed file, {} without one."""
    return json.loads((bundle / name).read_text("utf-8")) if name in manifest["files"] else {}


def _bytes(source: Path | bytes) -> int:
    """Return the size of a file of the page."""
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def _listed(source: Path | bytes, name: str, folder: Path) -> dict[str, Any]:
    """Write a file's parts and return its entry; a part's name has the file's hash."""
    data = source if isinstance(source, bytes) else source.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    parts, hashes = [], []
    for i, start in enumerate(range(0, len(data), PART_BYTES)):
        place = f"{FOLDER}/{name.replace('/', '-')}.{digest[:8]}.{i}.bin"
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        part = data[start : start + PART_BYTES]
        (folder / place).write_bytes(part)
        parts.append(place)
        hashes.append(hashlib.sha256(part).hexdigest())
    own = {"size": PART_BYTES, "parts": parts, "hashes": hashes}
    return {"bytes": len(data), "sha256": digest, **own}


def _ends(bundle: Path, manifest: dict, decoder: "Decoder") -> list[int]:
    """Return the token ids that end an answer, of all files that name some."""
    from mlpmem.model.tokenizer import turn_ends

    found = set(turn_ends(decoder.tokenizer))
    for name in ("generation_config", "config"):
        named = _json(bundle, manifest, f"decoder/{name}.json").get("eos_token_id")
        found |= {named} if isinstance(named, int) else set(named or ())
    return sorted(found)
