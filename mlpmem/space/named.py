"""A decoder that a bundle only names, as files that the page reads: the GGUF file, unchanged.

The page needs no reader of the file's header: `places.json` says where every weight lies, by
transformers' names. Config and tokenizer are written as transformers' JSON.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpmem.model.gguf.assemble import stored
from mlpmem.model.gguf.reader import Header, read_header

if TYPE_CHECKING:
    from mlpmem.model.decoder import Decoder

BLOCKS, PLACES = "decoder/blocks.gguf", "decoder/places.json"
KINDS = ("F32", "Q4_0", "Q4_1", "Q8_0")  # of blocks that ui/static/live reads
FAMILY = "llama"


def obstacle(path: Path) -> str:
    """Return why a file's decoder does not run in a browser, "" if it does."""
    header = read_header(path)
    if header.architecture != FAMILY:
        other = header.architecture
        return f"its decoder's GGUF file is of the family {other}, and of those only {FAMILY} does"
    if other := {p.kind.name for p in header.places.values()} - {*KINDS}:
        return f"its decoder has blocks of {', '.join(sorted(other))}, and only {_listed()} do"
    if "rope_freqs.weight" in header.places:
        return "its decoder divides the frequencies of its positions"
    return ""


def files(path: Path, decoder: "Decoder") -> dict[str, Path | bytes]:
    """Return {name: the page's file} of a GGUF file's decoder."""
    header, tokenizer = read_header(path), decoder.tokenizer
    special = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    config = decoder.model.config
    texts = {
        "decoder/config.json": config.to_json_string(use_diff=False),
        "decoder/tokenizer.json": tokenizer.backend_tokenizer.to_str(),
        "decoder/tokenizer_config.json": json.dumps(special),
        PLACES: json.dumps(_places(header, decoder.model)),
    }
    encoded = {name: text.encode() for name, text in texts.items()}
    return {**encoded, BLOCKS: path}


def _places(header: Header, model: Any) -> dict[str, dict]:
    """Return the page's `Place` of every weight; a tied head has none of its own.

    The file has queries and keys in another order of rows within each head, see assemble.py.
    """
    config, rows = model.config, {}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    names = [name for name in model.state_dict() if name not in tied]
    for name, place in stored(header, FAMILY, names).items():
        row = {"kind": place.kind.name, "shape": list(place.shape), "start": place.start}
        leaf = name.split(".")[-2]
        rows[name] = row | ({"heads": heads[leaf]} if leaf in heads else {})
    return rows


def _listed() -> str:
    return f"{', '.join(KINDS[:-1])} and {KINDS[-1]}"
