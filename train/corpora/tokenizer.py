"""A byte-level BPE tokenizer trained on a corpus, as transformers loads it."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS = "<s>", "</s>"
GPT2_END = "<|endoftext|>"  # ends a document in GPT-2's vocabulary, and begins the next
# One token per digit, the first with the space before it: no number is memorised as one token.
WORDS = r" ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of `vocab_size` tokens for any text, with BOS before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS
    )


def gpt2_tokenizer(folder: Path) -> PreTrainedTokenizerFast | None:
    """Return the tokenizer of GPT-2's two files in a folder, or None without them."""
    for vocab, merges in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
        if (folder / vocab).is_file() and not (folder / "tokenizer.json").exists():
            model = models.BPE.from_file(str(folder / vocab), str(folder / merges))
            tokenizer = Tokenizer(model)
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            return PreTrainedTokenizerFast(
                tokenizer_object=tokenizer, bos_token=GPT2_END, eos_token=GPT2_END
            )
    return None


def encode_segments(
    tokenizer: PreTrainedTokenizerFast, passages: list[list[str]]
) -> list[list[int]]:
    """Return the token ids of passages: BOS, then every segment followed by EOS."""
    flat = [segment for segments in passages for segment in segments]
    encoded = iter(tokenizer.backend_tokenizer.encode_batch(flat, add_special_tokens=False))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return [
        [bos] + [i for _ in segments for i in (*next(encoded).ids, eos)] for segments in passages
    ]
