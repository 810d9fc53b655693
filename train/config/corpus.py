"""A recipe's [corpus] table: which kind of corpus, of which texts or facts."""

import re
from dataclasses import dataclass, field

from mlpmem.errors import MlpMemError
from train.config.checks import check_choice, check_range


@dataclass(frozen=True)
class AtlasOptions:
    """How often and in how many wordings the atlas states its facts; defaults are as shipped."""

    question_forms: int = 15  # per relation, the first ones of its list
    statement_forms: int = 12
    about_forms: int = 7
    memory_statements: int = 2  # fixed wordings per fact in the memory's corpus
    memory_questions: int = 3
    known_wordings: int = 0  # of each sort per fact of A1 there; 0: as many as for B
    strangers: float = 0.0  # passages about one-off names, as a share of the decoder's others
    memory_strangers: float = 0.0  # likewise in the memory's corpus
    odd_words: float = 0.0  # share of the decoder's questions with made-up words


@dataclass(frozen=True)
class ChatOptions:
    """Chats about the atlas's facts, and what a memory of them must leave to the decoder."""

    wordings: int = 6  # questions per fact, each a chat of one turn
    later: int = 1  # further questions per fact, behind other turns
    rivals: int = 1  # further questions per fact that name another entity beside its own
    invented: int = 0  # facts about invented entities at most; 0: all
    general: int = 240  # requests of other subjects, answered by the decoder
    naming: int = 180  # requests that name the facts' entities, likewise
    follow: int = 180  # requests behind a fact's question that name nothing, likewise
    held_out: int = 60  # of each, for dev; and as many again for test
    answer_tokens: int = 48  # of such an answer, at most
    plain_tokens: int = 38_400  # of the text in `train` that the decoder reads

    def __post_init__(self) -> None:
        """Check ranges."""
        check_range("corpus.chat", "wordings", self.wordings, 1)
        check_range("corpus.chat", "answer_tokens", self.answer_tokens, 1)
        for name in (
            "later",
            "rivals",
            "invented",
            "general",
            "naming",
            "follow",
            "held_out",
            "plain_tokens",
        ):
            check_range("corpus.chat", name, getattr(self, name), 0)


KINDS = {  # kind of corpus: the class with all that differs, imported on first use
    "atlas": "train.kinds.atlas:AtlasKind",
    "chat": "train.kinds.chat:ChatKind",
    "text": "train.kinds.text:TextKind",
}


@dataclass(frozen=True)
class CorpusConfig:
    """Source of the text, and its tokenizer."""

    # of KINDS: "atlas", "chat" for the atlas's facts and a decoder that can chat, or "text" for
    # your own documents
    kind: str = "atlas"
    vocab_size: int = 4096  # of the tokenizer that is trained
    # atlas
    scale: float = 1.0  # share of the atlas's entities
    draws: int = 9  # epochs of the decoder, each in other wordings
    together: bool = False  # every epoch of the decoder also has the memory's corpus
    atlas: AtlasOptions = field(default_factory=AtlasOptions)
    # chat; its `train` is text that the decoder must go on to read as it does
    chat: ChatOptions = field(default_factory=ChatOptions)
    # text: files, folders, patterns (.txt .md .jsonl .parquet, also .gz .bz2 .xz), or
    # "hub:owner/name[:configuration[:split]]"
    train: tuple[str, ...] = ()
    valid: tuple[str, ...] = ()  # empty: drawn from the training documents
    test: tuple[str, ...] = ()  # likewise
    shares: tuple[float, float] = (0.05, 0.05)  # of the documents, for valid and test if drawn
    # regular expression of a document's first line; group 1 is the title. (?<=...) and (?=...)
    # match the line before and the line after
    heading: str = ""
    separator: str = ""  # a line between documents
    text_field: str = "text"  # of a row of JSON lines, Parquet or the Hub
    title_field: str = "title"
    passage: int = 256  # tokens per passage; each passage is keyed separately
    tokenizer: str = ""  # folder or "hub:owner/name"; empty: the decoder's, or a new one
    attributions: tuple[str, ...] = ()  # sources of the text and their licences

    @property
    def cut(self) -> bool:
        """Return whether documents are cut into passages of `passage` tokens (the atlas is not)."""
        return self.kind != "atlas"

    def __post_init__(self) -> None:
        """Check choices, ranges and the regular expression."""
        check_choice("corpus", "kind", self.kind, tuple(KINDS))
        check_range("corpus", "vocab_size", self.vocab_size, 258)  # every byte, BOS and EOS
        check_range("corpus", "scale", self.scale, 0, 1, above=True)
        check_range("corpus", "draws", self.draws, 1)
        check_range("corpus", "passage", self.passage, 2)
        if not (len(self.shares) == 2 and min(self.shares) >= 0 and sum(self.shares) < 1):
            raise MlpMemError(
                "corpus: shares must be two numbers of 0 or more whose sum is below 1; got "
                f"{self.shares}"
            )
        try:
            re.compile(self.heading, re.MULTILINE)
        except re.error as error:
            raise MlpMemError(
                f"corpus: heading must be a regular expression; got {self.heading!r} ({error}). "
                "In TOML put it in single quotes, which keep backslashes"
            ) from error
