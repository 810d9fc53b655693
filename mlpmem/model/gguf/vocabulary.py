"""A GGUF file's tokenizer, as transformers reads it with the package gguf."""

import json
from importlib.util import find_spec
from typing import Any

from mlpmem.errors import MlpMemError
from mlpmem.model.gguf.reader import AGAIN, Header, one_line

# how a text is split before merges, of kinds that transformers' reader splits as GPT-2 does
BLOOM = (" ?[^(\\s|.,!?…。，、।۔،)]+",), False, ()
SPLITS = {  # regular expressions, whether GPT-2's split follows, further regular expressions
    "bloom": BLOOM,
    "poro-chat": BLOOM,
    "gpt3-finnish": BLOOM,
    "falcon": (("[\\p{P}\\$\\+<=>\\^~\\|`]+",), True, ("[0-9][0-9][0-9]",)),
    "stablelm2": (
        (
            "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}"
            "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
        ),
        False,
        (),
    ),
}


def read_tokenizer(header: Header) -> Any:
    """Return the file's tokenizer; MlpMemError if transformers cannot read it."""
    from transformers import PreTrainedTokenizerFast

    if find_spec("gguf") is None:
        raise MlpMemError(
            "decoder: reading the tokenizer of a GGUF file needs the package gguf, which is not "
            "installed; pip install gguf"
        )
    path, count = header.path, len(header.values["tokenizer.ggml.tokens"])
    try:
        options = {"gguf_file": path.name, "local_files_only": True}
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path.parent), **options)
        _split(tokenizer, header)
        return tokenizer if len(tokenizer) == count else _without_added(tokenizer, count)
    except Exception as error:  # a damaged vocabulary causes errors of many kinds
        raise MlpMemError(
            f"decoder: the tokenizer in {path.name} cannot be read ({one_line(error)}); {AGAIN}"
        ) from error


def _split(tokenizer: Any, header: Header) -> None:
    """Split texts as the file says, where transformers' reader does not know its kind of split."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    kind = header.values.get("tokenizer.ggml.pre")
    if header.values["tokenizer.ggml.model"] != "gpt2" or kind not in SPLITS:
        return
    before, as_gpt2, after = SPLITS[kind]
    first, last = ([Split(Regex(each), "isolated") for each in part] for part in (before, after))
    level = ByteLevel(add_prefix_space=False, use_regex=as_gpt2)
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([*first, level, *last])


def _without_added(tokenizer: Any, count: int) -> Any:
    """Return a tokenizer without the tokens that transformers' class adds to the file's."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["added_tokens"] = [row for row in spec["added_tokens"] if row["id"] < count]
    vocab = spec["model"]["vocab"]
    if isinstance(vocab, dict):
        spec["model"]["vocab"] = {name: i for name, i in vocab.items() if i < count}
    special = {
        name: token
        for name, token in tokenizer.special_tokens_map.items()
        if isinstance(token, str) and tokenizer.convert_tokens_to_ids(token) < count
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)),
        chat_template=tokenizer.chat_template,
        **special,
    )
