"""A decoder's tokenizer: read from a folder or the hub, and known again by its hash."""

import hashlib
import json
from pathlib import Path
from typing import Any

from mlpmem.errors import MlpMemError

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def load_tokenizer(source: str, **options: Any) -> Any:
    """Return the tokenizer of a folder or hub id: tokenizer.json as it is, where there is one.

    A family's own tokenizer class may add tokens and rules to what the file says. MlpMemError for
    a folder without a vocabulary, of which transformers would make a tokenizer that knows nothing.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = Path(source)
    if folder.is_dir() and not has_vocabulary(folder):
        raise MlpMemError(f"there is no tokenizer: none of {', '.join(VOCABULARIES)}")
    try:
        return PreTrainedTokenizerFast.from_pretrained(source, **options)
    except (OSError, ValueError):
        return AutoTokenizer.from_pretrained(source, **options)


def has_vocabulary(folder: Path) -> bool:
    """Return whether a folder holds a tokenizer's vocabulary."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def tokenizer_hash(tokenizer: Any) -> str:
    """Return a sha256 over the sorted vocabulary and the merges of a tokenizer."""
    digest = hashlib.sha256()
    for piece, i in sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])):
        digest.update(f"{i}\t{piece}\n".encode("utf-8", "surrogatepass"))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    merges = json.loads(backend.to_str())["model"].get("merges") if backend is not None else None
    for merge in merges or []:
        line = merge if isinstance(merge, str) else " ".join(merge)
        digest.update(f"{line}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
