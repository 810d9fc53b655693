"""A decoder's folder: checked, then read by transformers as its model and tokenizer.

An untrusted folder may state a million layers, point outside itself, or hold a pipe in place of
weights. Sizes, kinds and names are checked before use, so that nothing hangs or fills the memory.
transformers and torch are imported inside functions.
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
from mlpmem.model.confined import run_confined
from mlpmem.model.families import Family
from mlpmem.model.tokenizer import is_panic, load_tokenizer

if TYPE_CHECKING:
    from torch import nn

LOCAL = {"trust_remote_code": False, "local_files_only": True}
# names of the text part's weights: in a multimodal model -> in the part
TEXT_NAMES = {
    r"^language_model\.lm_head": "lm_head",
    r"^(model\.)?language_model\.(model\.)?": "model.",
}
CONFIG_BYTES, TEXT_BYTES = 4 * 2**20, 256 * 2**20  # of config.json; of a tokenizer's files
LAYERS, EXPERTS, BLOCKS = 1024, 4096, 2**16  # limits: of a decoder, of a layer, of their product
PER_BYTE, SPARE = 2, 2**27  # numbers per stored byte (4 bits each); numbers of masks and others
GROWTH, REPLACEMENT, STEPS = 512, 1024, 64  # limits of a normalizer: factor, characters, steps
SECONDS, REGEX = 5.0, '"Regex"'  # for trying a tokenizer with regular expressions


def read_folder(folder: Path, family: Family | None, **options: Any) -> tuple["nn.Module", Any]:
    """Return model and tokenizer of a transformers folder; options are from_pretrained's."""
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
    """Turn any error that a library raises on a decoder's files into an MlpMemError."""
    try:
        yield
    except BaseException as error:  # damaged files cause errors and panics of many kinds
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise MlpMemError(
            f"decoder: cannot load {folder.name!r} ({_first_line(error)}); give a "
            "transformers folder with config.json, model.safetensors (or pytorch_model.bin) "
            "and a tokenizer, or a Hub id"
        ) from error


def _read_model(folder: Path, family: Family | None, **options: Any) -> "nn.Module":
    """Return the causal LM of a transformers folder, or the text part of a multimodal model.

    MlpMemError if weights are missing.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(folder), **LOCAL)
    if multimodal := family is not None and bool(family.text_part):
        tied, config = config.tie_word_embeddings, getattr(config, family.text_part)
        config.tie_word_embeddings = tied
        options["key_mapping"] = TEXT_NAMES
    check_stated(folder, config)
    model, info = AutoModelForCausalLM.from_pretrained(
        str(folder), config=config, weights_only=True, output_loading_info=True, **LOCAL, **options
    )
    check_complete(info["missing_keys"])
    if multimodal:
        model._weight_conversions = None  # so that it is saved under the part's names
    return model


def check_complete(missing: Collection[str]) -> None:
    """Raise MlpMemError for missing weights, which transformers would draw at random."""
    if missing:
        raise MlpMemError(
            f"it lacks {len(missing)} weights, such as {min(missing)}; if it is a memory, load it "
            "as a memory"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def check_files(folder: Path) -> None:
    """Raise MlpMemError if a decoder's folder has files that must not be read."""
    check_kinds(folder, "decoder")
    for path in folder.iterdir():
        is_text = path.suffix in (".json", ".jinja", ".txt", ".model")
        limit = CONFIG_BYTES if path.name == "config.json" else TEXT_BYTES
        if is_text and path.is_file() and path.stat().st_size > limit:
            raise _refused(folder, f"{path.name} has {path.stat().st_size} bytes, over {limit}")
        if path.name.endswith(".index.json"):
            _check_index(folder, path)
    if (folder / ADAPTER_FILES[0]).exists():
        raise MlpMemError(
            f"decoder: {folder.name} also holds a LoRA adapter ({ADAPTER_FILES[0]}), which would "
            "change the weights; move the adapter's files to another folder and give that as a "
            "column, NAME=FOLDER"
        )
    _check_config(folder)


def _check_index(folder: Path, path: Path) -> None:
    """Raise MlpMemError if an index of shards names a file outside its folder."""
    try:
        table = read_json(path).get("weight_map")
        shards = {str(shard) for shard in table.values()}
    except (OSError, ValueError, AttributeError) as error:
        raise _refused(folder, f"{path.name} lists no shards ({str(error)[:100]})") from error
    if outside := sorted(name for name in shards if Path(name).name != name):
        raise _refused(folder, f"{path.name} names {outside[0][:100]!r}, which is outside it")


def _check_config(folder: Path) -> None:
    """Raise MlpMemError if config.json states too many layers or experts."""
    try:
        row = read_json(folder / "config.json", CONFIG_BYTES)
    except (OSError, ValueError):  # reported when transformers reads it
        return
    largest = {"layer": 1, "expert": 1}
    for name, value in _integers(row):
        for kind in largest:
            if kind in name and not name.endswith(("freq", "step", "pattern", "size", "dim")):
                largest[kind] = max(largest[kind], value)
    layers, experts = largest["layer"], largest["expert"]
    if layers > LAYERS or experts > EXPERTS or layers * experts > BLOCKS:
        raise _refused(
            folder,
            f"config.json states {layers} layers and {experts} experts; at most {LAYERS} and "
            f"{EXPERTS} are allowed, {BLOCKS} in all",
        )


def _integers(row: Any) -> Iterator[tuple[str, int]]:
    """Yield (name, integer) of a configuration and its nested ones."""
    for name, value in row.items() if isinstance(row, dict) else ():
        if isinstance(value, dict):
            yield from _integers(value)
        elif isinstance(value, int):
            yield name, value


def check_stated(folder: Path, config: Any) -> None:
    """Raise MlpMemError if a config needs far more numbers than the weight files hold.

    The message is only a reason; `reading` adds the folder.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    stated = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    stored = next(filter(None, (_bytes(folder, pattern) for pattern in WEIGHTS)), 0)
    if stated > PER_BYTE * stored + SPARE:
        raise MlpMemError(
            f"config.json needs {stated:.3g} numbers, the weight files have {stored:.3g} bytes"
        )


def _bytes(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())


def check_numbers(model: "nn.Module", folder: Path) -> None:
    """Raise MlpMemError for a weight with infinity or NaN, which would spoil every answer.

    A sum is fast; every number is checked only if the sum is not finite.
    """
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if weight.is_meta or not weight.is_floating_point() or weight.sum().isfinite():
            continue
        if not weight.isfinite().all():
            raise MlpMemError(
                f"decoder: {name} in {folder.name} contains infinity or NaN in "
                f"{str(weight.dtype).removeprefix('torch.')}; its training failed, the file is "
                "altered, or it needs a wider dtype. Download it again, or load it in float32"
            )


def check_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Raise MlpMemError if a tokenizer could make a text far longer, or hang.

    Its own regular expressions are tried on long texts in a process that can be killed.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    has_regex = False
    for part in ("normalizer", "pre_tokenizer"):
        rules = getattr(backend, part, None)
        steps = list(_steps(json.loads(rules.__getstate__()))) if rules is not None else []
        growth = math.prod(map(_growth, steps))
        if len(steps) > STEPS or growth > GROWTH:
            raise _refused(
                folder,
                f"the {part} of its tokenizer has {len(steps)} steps that may make a text "
                f"{growth:.3g} times as long; at most {STEPS} and {GROWTH} are allowed",
            )
        has_regex = has_regex or any(REGEX in json.dumps(step) for step in steps)
    if has_regex:
        answer = run_confined("try", SECONDS, tokenizer=backend.to_str())
        if "error" in answer:
            raise _refused(folder, f"its tokenizer cannot split a long text ({answer['error']})")


def _steps(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a part of a tokenizer, with sequences flattened."""
    inner = row.get("normalizers", row.get("pretokenizers"))
    if isinstance(inner, list):
        for step in inner:
            yield from _steps(step)
    else:
        yield row


def _growth(step: Mapping[str, Any]) -> float:
    """Return the factor by which a tokenizer's step may lengthen a text."""
    kind, content = step.get("type"), step.get("content") or step.get("prepend") or ""
    if kind == "Precompiled":
        return _longest(step.get("precompiled_charsmap") or "")
    if kind != "Replace":
        return 1.0 if len(content) <= REPLACEMENT else math.inf
    text = step.get("pattern", {}).get("String")
    if text:
        return max(1.0, len(content) / len(text))
    return 1.0 + len(content)  # a regular expression may match between any two characters


def _longest(table: str) -> float:
    """Return the bytes of the longest replacement in SentencePiece's table of characters.

    The table is the size of a trie, the trie, then replacements that end with 0.
    """
    data = base64.b64decode(table)
    replacements = data[4 + int.from_bytes(data[:4], "little") :]
    return float(max(map(len, replacements.split(b"\0")), default=1) or 1)


def _refused(folder: Path, why: str) -> MlpMemError:
    return MlpMemError(
        f"decoder: {folder.name} is refused: {why}. Check that this is a decoder's folder, or "
        "download it again"
    )
