"""Texts of a decoder: text <-> token ids, control tokens, and the ids at which it ends."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from torch import nn

from mlpmem.model.tokenizer import (
    encode_text,
    special_ids,
    token_bytes,
    tokenizer_hash,
    turn_ends,
)


class Texts:
    """What a decoder's tokenizer and configs say of its texts; V token ids."""

    model: nn.Module
    tokenizer: Any
    vocab_size: int

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Return the token ids that end a text or a turn.

        They come from generation config, config, tokenizer and chat template.
        """
        ids: set[int] = set(turn_ends(self.tokenizer))
        for config in (self.model.generation_config, self.model.config, self.tokenizer):
            named = getattr(config, "eos_token_id", None)
            ids |= {named} if isinstance(named, int) else set(named or ())
        return frozenset(ids)

    @cached_property
    def tokenizer_hash(self) -> str:
        """Return a sha256 over vocabulary and merges, equal for equal tokenizers."""
        return tokenizer_hash(self.tokenizer)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """Return the UTF-8 bytes of every token id, (V,)."""
        return token_bytes(self.tokenizer, self.vocab_size)

    @cached_property
    def pieces(self) -> list[str]:
        """Return the text of every token id, (V,); undecodable bytes are U+FFFD."""
        return [piece.decode("utf-8", "replace") for piece in self.token_bytes]

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Return the token ids that are not text."""
        return special_ids(self.tokenizer)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Return the token ids of text, with BOS if the tokenizer adds one.

        Names of control tokens in the text are plain text, unless special is True.
        """
        ids = encode_text(self.tokenizer, text, add_special_tokens=True, special=special)
        if special and self._has_two_bos(ids):
            return ids[1:]
        return ids

    def _has_two_bos(self, ids: list[int]) -> bool:
        """Return whether the text contains the BOS that the tokenizer adds anyway."""
        bos = self.tokenizer.bos_token_id
        return bos is not None and ids[:2] == [bos, bos]

    def spelled(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, with control tokens by name."""
        return b"".join(self.token_bytes[i] for i in ids).decode("utf-8", "replace")

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids, without special tokens."""
        pieces = (self.token_bytes[i] for i in ids if i not in self.special_ids)
        return b"".join(pieces).decode("utf-8", "replace")
