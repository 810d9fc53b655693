"""How large everything in a recipe is: measured where a stage is finished, estimated before."""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from mlpmem.errors import MlpMemError
from train.config.tables import Recipe
from train.run.kinds import kind_named
from train.run.stage import finished_manifest

SUPPORT = 0.25  # tokens in a target a neighbour: 251 of 1,024 where the paper counted


class UnknownSizeError(MlpMemError):
    """The corpus is somewhere else and was not read yet."""


@dataclass(frozen=True)
class Sizes:
    """What the ledger's formulas are made of; counts, no bytes."""

    corpus: int  # tokens of all parts
    learned: int  # tokens the decoder is trained on, over all epochs
    memory: int  # tokens that are keyed
    entries: int  # N
    rows: int  # the memory learns from
    support: float  # tokens in a row's target, on average
    hidden: int  # D
    vocab: int  # V
    body: int  # parameters of the decoder's layers
    decoder: int  # parameters of the decoder, embeddings and head with it
    blocks: int  # parameters of the memory's blocks

    @property
    def memory_parameters(self) -> int:
        """Return the memory's parameters, its head with them."""
        return self.blocks + self.head

    @property
    def head(self) -> int:
        """Return the parameters of a head, V x D."""
        return self.vocab * self.hidden


def sizes_of(recipe: Recipe, root: Path) -> Sizes:
    """Return the sizes of a recipe; UnknownSizeError for a corpus that cannot be sized yet."""
    corpus, learned, memory = _tokens(recipe, root)
    hidden, vocab, body, total = _decoder(recipe, root)
    kind = kind_named(recipe.corpus.kind)
    entries = round(memory * kind.distinct)
    if done := finished_manifest(root / "datastore"):
        entries, memory = done["counts"]["entries"], done["counts"]["tokens"]
    hard = kind.hard if recipe.targets.needs_nll else 0.0
    share = hard + recipe.targets.easy_share * (1 - hard)
    rows, support = round(entries * min(1.0, share)), max(1.0, recipe.targets.k * SUPPORT)
    if done := finished_manifest(root / "targets"):
        rows, support = done["counts"]["tokens"], done["counts"].get("mean_support", 0)
    blocks = recipe.memory.blocks * 3 * hidden * recipe.memory.intermediate_size
    if recipe.stated.memory_parameters:
        blocks = recipe.stated.memory_parameters - vocab * hidden
    return Sizes(
        corpus, learned, memory, entries, rows, support, hidden, vocab, body, total, blocks
    )


def _tokens(recipe: Recipe, root: Path) -> tuple[int, int, int]:
    """Return tokens of all parts, tokens a decoder learns from, tokens that are keyed."""
    stated, epochs = recipe.stated, recipe.decoder.epochs
    folder = root / "corpus"
    if stated.tokens:
        return stated.tokens, stated.decoder_tokens, stated.tokens
    if finished_manifest(folder):
        parts = {p.parent.name: _length(p) for p in folder.glob("*/tokens.npy")}
        draws = [size for name, size in parts.items() if name.startswith("decoder_")]
        return sum(parts.values()), epochs * sum(draws or [parts["memory"]]), parts["memory"]
    return kind_named(recipe.corpus.kind).tokens(recipe)


def _length(path: Path) -> int:
    """Return the length of a .npy array, read from its header alone."""
    return len(np.load(path, mmap_mode="r", allow_pickle=False))


def _decoder(recipe: Recipe, root: Path) -> tuple[int, int, int, int]:
    """Return (D, V, parameters of the layers, parameters of all) of the decoder."""
    config, stated, vocab = recipe.decoder, recipe.stated, recipe.corpus.vocab_size
    for folder in (root / "decoder", Path(config.source) if config.source else None):
        if folder is not None and (folder / "config.json").is_file():
            return _counted(folder)
    hidden = config.hidden_size
    body = config.layers * (4 * hidden**2 + 3 * hidden * config.intermediate_size)
    total = stated.decoder_parameters or body + vocab * hidden
    return hidden, vocab, min(body, total - vocab * hidden), total


@lru_cache(4)
def _counted(folder: Path) -> tuple[int, int, int, int]:
    """Return the sizes of a transformers folder's model, built without its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    total = sum(p.numel() for p in model.parameters())
    ends = {id(m.weight): m.weight for m in (model.get_input_embeddings(),
            model.get_output_embeddings())}  # fmt: skip
    outside = sum(math.prod(weight.shape) for weight in ends.values())
    return config.hidden_size, config.vocab_size, total - outside, total
