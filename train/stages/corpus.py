"""Stage corpus: text -> tokenizer, the memory's documents, and what else the kind of corpus has."""

from pathlib import Path

from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.model.tokenizer import load_tokenizer, tokenizer_hash
from train.run.kinds import kind_named
from train.run.stage import StageContext


def make_corpus(context: StageContext) -> dict:
    """Return counts; writes tokenizer/, memory/ and what else the kind of corpus has."""
    return kind_named(context.config.kind).make(context)


def check_tokens(decoder: Decoder, corpus: Path) -> None:
    """Raise MlpMemError unless a corpus folder's tokens are those of a decoder's own tokenizer."""
    if tokenizer_hash(load_tokenizer(str(corpus / "tokenizer"))) != decoder.tokenizer_hash:
        raise MlpMemError(
            f"{corpus}: its text is cut by another tokenizer than the decoder's, so its tokens "
            "would mean other words; name the run and the bundle (or decoder) that belong together"
        )
