"""A decoder's folder: checked, then read by transformers as its model and tokenizer.

A folder from anywhere may state a million layers, point outside itself, or hold a pipe in place of
weights. Sizes, kinds and names are checked before they are used, so that nothing hangs or takes the
machine's memory. transformers and torch are imported where they are needed.
"""

import base64
import json
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpmem.errors import MlpMemError
from mlpmem.formats import ADAPTER_FILES, WEIGHTS, check_kinds, read_json
from mlpmem.model.confined import ask
from mlpmem.model.families import Family
from mlpmem.model.tokenizer import is_panic, load_tokenizer

if TYPE_CHECKING:
    from torch import nn

LOCAL = {"trust_remote_code": False, "local_files_only": True}
# what a multimodal model calls the weights of its text part, and what the part alone calls them
TEXT_NAMES = {
    r"^language_model\.lm_head": "lm_head",
    r"^(model\.)?language_model\.(model\.)?": "model.",
}
CONFIG_BYTES, TEXT_BYTES = 4 * 2**20, 256 * 2**20  # of config.json; of a tokenizer's files
LAYERS, EXPERTS, BLOCKS = 1024, 4096, 2**16  # at most: of a decoder, of a layer, of both multiplied
PER_BYTE, SPARE = 2, 2**27  # numbers that a stored byte may stand for (4 bits each); masks beside
GROWTH, REPLACEMENT, STEPS = 512, 1024, 64  # of a normalizer: times in all, characters, steps
SECONDS, REGEX = 5.0, '"Regex"'  # to try a tokenizer that has regular expressions of its own


def read_folder(folder: Path, family: Family | None, **options: Any) -> tuple["nn.Module", Any]:
    """Return model and tokenizer of a transformers folder; options are from_pretrained's.

    MlpMemError says what is wrong with the folder.
    """
    check_files(folder)
    with reading(folder):
        tokenizer = load_tokenizer(str(folder), **LOCAL)
    check_tokenizer(tokenizer, folder)
    with reading(folder):
        model = _read_model(folder, family, **options)
    check_numbers(model, folder)
    return model, tokenizer


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn whatever a library raises over a decoder's files into an MlpMemError."""
    try:
        yield
    except BaseException as error:  # readers of damaged files have errors and panics of their own
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise MlpMemError(
            f"decoder: cannot load {folder.name!r} ({_first_line(error)}); give a "
            "transformers folder with config.json, model.safetensors (or pytorch_model.bin) "
            "and a tokenizer, or a hub id"
        ) from error


def _read_model(folder: Path, family: Family | None, **options: Any) -> "nn.Module":
    """Return the causal LM of a transformers folder, of a multimodal one only its text part.

    MlpMemError where it lacks weights.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(folder), **LOCAL)
    if multimodal := family is not None and bool(family.text_part):
        part = getattr(config, family.text_part)
        part.tie_word_embeddings = config.tie_word_embeddings
        config = part
        options["key_mapping"] = TEXT_NAMES
    check_stated(folder, config)
    model, read = AutoModelForCausalLM.from_pretrained(
        str(folder), config=config, weights_only=True, output_loading_info=True, **LOCAL, **options
    )
    check_complete(read["missing_keys"])
    if multimodal:
        model._weight_conversions = None  # it is saved under the part's own names
    return model


def check_complete(missing: Collection[str]) -> None:
    """Raise MlpMemError where weights were missing, which transformers would make up at random."""
    if missing:
        raise MlpMemError(
            f"it lacks {len(missing)} weights, such as {min(missing)}; if it is a memory, give it "
            "as one"
        )


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's text, cut at 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def check_files(folder: Path) -> None:
    """Raise MlpMemError where a decoder's folder holds what must not be read."""
    check_kinds(folder, "decoder")
    for path in folder.iterdir():
        text = path.suffix in (".json", ".jinja", ".txt", ".model")
        most = CONFIG_BYTES if path.name == "config.json" else TEXT_BYTES
        if text and path.is_file() and path.stat().st_size > most:
            raise _refused(folder, f"{path.name} has {path.stat().st_size} bytes, over {most}")
        if path.name.endswith(".index.json"):
            _check_index(folder, path)
    if (folder / ADAPTER_FILES[0]).exists():
        raise MlpMemError(
            f"decoder: {folder.name} also holds a LoRA adapter ({ADAPTER_FILES[0]}), which would "
            "change it; put the adapter's files into a folder of their own and give that as a "
            "column, NAME=FOLDER"
        )
    _check_config(folder)


def _check_index(folder: Path, path: Path) -> None:
    """Raise MlpMemError where an index of shards names a file outside its folder."""
    try:
        table = read_json(path).get("weight_map")
        shards = {str(shard) for shard in table.values()}
    except (OSError, ValueError, AttributeError) as error:
        raise _refused(folder, f"{path.name} names no shards ({str(error)[:100]})") from error
    if outside := sorted(name for name in shards if Path(name).name != name):
        raise _refused(folder, f"{path.name} names {outside[0][:100]!r}, which is not in it")


def _check_config(folder: Path) -> None:
    """Raise MlpMemError where config.json states more layers or experts than decoders have."""
    try:
        row = read_json(folder / "config.json", CONFIG_BYTES)
    except (OSError, ValueError):  # whoever reads it says what is wrong
        return
    found = {"layer": 1, "expert": 1}
    for name, value in _numbers(row):
        for kind in found:
            if kind in name and not name.endswith(("freq", "step", "pattern", "size", "dim")):
                found[kind] = max(found[kind], value)
    layers, experts = found["layer"], found["expert"]
    if layers > LAYERS or experts > EXPERTS or layers * experts > BLOCKS:
        raise _refused(
            folder,
            f"config.json states {layers} layers and {experts} experts; {LAYERS} and {EXPERTS} are "
            f"read, {BLOCKS} in all",
        )


def _numbers(row: Any) -> Iterator[tuple[str, int]]:
    """Yield (name, whole number) of a configuration and of those nested in it."""
    for name, value in row.items() if isinstance(row, dict) else ():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int):
            yield name, value


def check_stated(folder: Path, config: Any) -> None:
    """Raise MlpMemError where a config asks for far more numbers than the weights' files hold.

    The error is a reason only: whoever reads the folder names it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    stated = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    stored = next(filter(None, (_bytes(folder, pattern) for pattern in WEIGHTS)), 0)
    if stated > PER_BYTE * stored + SPARE:
        raise MlpMemError(
            f"config.json asks for {stated:.3g} numbers, its weights have {stored:.3g} bytes"
        )


def _bytes(folder: Path, pattern: str) -> int:
    """Return the size of a folder's files of a pattern."""
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())


def check_numbers(model: "nn.Module", folder: Path) -> None:
    """Raise MlpMemError for a weight with infinity or not-a-number: it would be in every answer.

    A sum tells at the speed of memory; only where that is not finite is every number asked.
    """
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if weight.is_meta or not weight.is_floating_point() or weight.sum().isfinite():
            continue
        if not weight.isfinite().all():
            raise MlpMemError(
                f"decoder: {name} in {folder.name} holds numbers that are infinite or none in "
                f"{str(weight.dtype).removeprefix('torch.')}; its training failed, the file is "
                "altered, or it needs a wider dtype. Download it again, or load it in float32"
            )


def check_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Raise MlpMemError where a tokenizer would make far more of a text than it is, or hang.

    Regular expressions of its own are tried on long texts in a process that can be ended.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    patterns = False
    for part in ("normalizer", "pre_tokenizer"):
        rules = getattr(backend, part, None)
        steps = list(_steps(json.loads(rules.__getstate__()))) if rules is not None else []
        growth = math.prod(map(_growth, steps))
        if len(steps) > STEPS or growth > GROWTH:
            raise _refused(
                folder,
                f"the {part} of its tokenizer has {len(steps)} steps that may make a text "
                f"{growth:.3g} times as long; {STEPS} and {GROWTH} are allowed",
            )
        patterns = patterns or any(REGEX in json.dumps(step) for step in steps)
    if patterns and "error" in (answer := ask("try", SECONDS, tokenizer=backend.to_str())):
        raise _refused(folder, f"its tokenizer cannot cut a long text ({answer['error']})")


def _steps(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a part of a tokenizer, those within sequences one by one."""
    inner = row.get("normalizers", row.get("pretokenizers"))
    if isinstance(inner, list):
        for step in inner:
            yield from _steps(step)
    else:
        yield row


def _growth(step: Mapping[str, Any]) -> float:
    """Return how many times as long a text may become in one step of a tokenizer."""
    kind, content = step.get("type"), step.get("content") or step.get("prepend") or ""
    if kind == "Precompiled":
        return _longest(step.get("precompiled_charsmap") or "")
    if kind != "Replace":
        return 1.0 if len(content) <= REPLACEMENT else math.inf
    text = step.get("pattern", {}).get("String")
    if text:
        return max(1.0, len(content) / len(text))
    return 1.0 + len(content)  # a regular expression may match nothing, between any two characters


def _longest(table: str) -> float:
    """Return the bytes of the longest replacement in SentencePiece's table of characters.

    It is the size of a trie, the trie, then replacements that end with 0.
    """
    data = base64.b64decode(table)
    replacements = data[4 + int.from_bytes(data[:4], "little") :]
    return float(max(map(len, replacements.split(b"\0")), default=1) or 1)


def _refused(folder: Path, why: str) -> MlpMemError:
    """Return the error for a folder that is not read."""
    return MlpMemError(
        f"decoder: {folder.name} is not read: {why}. Is this a decoder's folder? If it is, "
        "download it again"
    )
