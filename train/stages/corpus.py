"""Stage corpus: from text to a tokenizer, the memory's documents and the kind's other parts."""

from pathlib import Path

from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.model.tokenizer import load_tokenizer, tokenizer_hash
from train.run.kinds import kind_named
from train.run.stage import StageContext


def make_corpus(context: StageContext) -> dict:
    """Return counts; writes tokenizer/, memory/ and the kind's other parts."""
    return kind_named(context.config.kind).make(context)


def check_tokens(decoder: Decoder, corpus: Path) -> None:
    """Raise MlpMemError unless a corpus was tokenized by the decoder's own tokenizer."""
    if tokenizer_hash(load_tokenizer(str(corpus / "tokenizer"))) != decoder.tokenizer_hash:
        raise MlpMemError(
            f"{corpus}: its tokenizer differs from the decoder's, so its ids mean other tokens; "
            "give a run and a bundle (or decoder) that belong together"
        )
