"""The sizes of a recipe's parts: measured if their stage is finished, otherwise estimated."""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from mlpmem.errors import MlpMemError
from train.config.tables import Recipe
from train.run.kinds import kind_named
from train.run.stage import finished_manifest

SUPPORT = 0.25  # tokens of a target per neighbour; the paper counts 251 for 1,024


class UnknownSizeError(MlpMemError):
    """The corpus is not on this machine and has not been read yet."""


@dataclass(frozen=True)
class Sizes:
    """The variables of the formulas in `needs`; counts, not bytes."""

    corpus: int  # tokens of all parts
    learned: int  # tokens the decoder is trained on, over all epochs
    memory: int  # tokens with keys
    entries: int  # N
    rows: int  # R, that the memory learns from
    support: float  # S, mean tokens of a row's target
    hidden: int  # D
    vocab: int  # V
    body: int  # parameters of the decoder's layers
    decoder: int  # all parameters of the decoder, with embeddings and head
    blocks: int  # parameters of the memory's blocks

    @property
    def memory_parameters(self) -> int:
        """Return the memory's parameters, with its head."""
        return self.blocks + self.head

    @property
    def head(self) -> int:
        """Return the parameters of a head, V x D."""
        return self.vocab * self.hidden


def sizes_of(recipe: Recipe, root: Path) -> Sizes:
    """Return the sizes of a recipe; UnknownSizeError if the corpus's size is not known yet."""
    corpus, learned, memory = _tokens(recipe, root)
    hidden, vocab, body, total = _decoder(recipe, root)
    kind = kind_named(recipe.corpus.kind)
    entries = round(memory * kind.distinct)
    if manifest := finished_manifest(root / "datastore"):
        entries, memory = manifest["counts"]["entries"], manifest["counts"]["tokens"]
    hard = kind.hard if recipe.targets.needs_nll else 0.0
    share = hard + recipe.targets.easy_share * (1 - hard)
    rows, support = round(entries * min(1.0, share)), max(1.0, recipe.targets.k * SUPPORT)
    if manifest := finished_manifest(root / "targets"):
        rows, support = manifest["counts"]["tokens"], manifest["counts"].get("mean_support", 0)
    blocks = recipe.memory.blocks * 3 * hidden * recipe.memory.intermediate_size
    if recipe.stated.memory_parameters:
        blocks = recipe.stated.memory_parameters - vocab * hidden
    return Sizes(
        corpus, learned, memory, entries, rows, support, hidden, vocab, body, total, blocks
    )


def _tokens(recipe: Recipe, root: Path) -> tuple[int, int, int]:
    """Return tokens of all parts, tokens the decoder learns from, tokens with keys."""
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
    """Return the length of a .npy array, read from its header."""
    return len(np.load(path, mmap_mode="r", allow_pickle=False))


def _decoder(recipe: Recipe, root: Path) -> tuple[int, int, int, int]:
    """Return (D, V, parameters of the layers, all parameters) of the decoder."""
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
    """Return the same of a transformers folder's model, built without its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    total = sum(p.numel() for p in model.parameters())
    modules = model.get_input_embeddings(), model.get_output_embeddings()
    tables = {id(module.weight): module.weight for module in modules}  # one if they are tied
    outside = sum(math.prod(weight.shape) for weight in tables.values())
    return config.hidden_size, config.vocab_size, total - outside, total
