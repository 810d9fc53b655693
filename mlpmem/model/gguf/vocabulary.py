"""A GGUF file's tokenizer, as transformers reads it with the package gguf."""

import json
from importlib.util import find_spec
from typing import Any

from mlpmem.errors import MlpMemError
from mlpmem.model.gguf.reader import AGAIN, Header, one_line


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
        return tokenizer if len(tokenizer) == count else _without_added(tokenizer, count)
    except Exception as error:  # a damaged vocabulary causes errors of many kinds
        raise MlpMemError(
            f"decoder: the tokenizer in {path.name} cannot be read ({one_line(error)}); {AGAIN}"
        ) from error


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
