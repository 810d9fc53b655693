"""How large everything in a recipe is: measured where a stage is finished, estimated before."""

import math
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from mlpmem.errors import MlpMemError
from train.config.load import HUB
from train.config.tables import Atlas, Corpus, Recipe
from train.corpora.atlas.wordings import AtlasConfig
from train.run.stage import finished_manifest

BYTES_A_TOKEN = 4.0  # of text, before it was tokenised
SAMPLE = 200_000  # bytes of text that are tokenised where the tokenizer is here
PLAIN = (".txt", ".md", ".jsonl")  # files whose bytes are text
ENTITIES = {"A1": 1154, "A2": 1155, "B": 771}  # of the atlas at scale 1
WORDING = 80  # tokens an entity's facts take in one wording each
HELD_OUT = 265_000  # tokens of the atlas's held-out documents at scale 1
DISTINCT = {"atlas": 0.68, "text": 1.0}  # entries a token; ordinary text repeats few prefixes
HARD = {"atlas": 0.25, "text": 0.7}  # share of entries harder for the decoder than nll_floor
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
    kind = recipe.corpus.kind
    entries = round(memory * DISTINCT[kind])
    if done := finished_manifest(root / "datastore"):
        entries, memory = done["counts"]["entries"], done["counts"]["tokens"]
    hard = HARD[kind] if recipe.targets.judged else 0.0
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
    config, stated, epochs = recipe.corpus, recipe.stated, recipe.decoder.epochs
    folder = root / "corpus"
    if stated.tokens:
        return stated.tokens, stated.decoder_tokens, stated.tokens
    if finished_manifest(folder):
        parts = {p.parent.name: _length(p) for p in folder.glob("*/tokens.npy")}
        draws = [size for name, size in parts.items() if name.startswith("decoder_")]
        return sum(parts.values()), epochs * sum(draws or [parts["memory"]]), parts["memory"]
    if config.kind == "atlas":
        draw, memory = (round(tokens * config.scale) for tokens in _atlas(config.atlas))
        draws = (draw + config.together * memory) * config.draws
        return draws + memory + round(HELD_OUT * config.scale), epochs * draws, memory
    files = {name: _files(getattr(config, name)) for name in ("train", "valid", "test")}
    rate = _bytes_a_token(config, files["train"])
    size = {
        name: round(sum(file.stat().st_size for file in some) / rate)
        for name, some in files.items()
    }
    drawn = sum(share for share, n in zip(config.shares, ("valid", "test"), strict=True)
                if not size[n])  # fmt: skip
    memory = round(size["train"] * (1 - drawn))
    return sum(size.values()), epochs * memory, memory


def _atlas(config: Atlas) -> tuple[int, int]:
    """Return about how many tokens a draw and the memory's part of a whole atlas have."""
    read = ENTITIES["A1"] + ENTITIES["A2"]
    said = AtlasConfig.decoder_statements + AtlasConfig.decoder_questions
    odd = 1 + config.odd_words / 3  # odd words are long
    remembered = config.memory_statements + config.memory_questions
    known = 2 * config.known_wordings or remembered
    wordings = ENTITIES["A1"] * known + remembered * (
        ENTITIES["B"] + read * config.memory_strangers
    )
    return round(WORDING * said * read * (1 + config.strangers) * odd), round(WORDING * wordings)


def _length(path: Path) -> int:
    """Return the length of a .npy array, read from its header alone."""
    return len(np.load(path, mmap_mode="r", allow_pickle=False))


def _files(sources: tuple[str, ...]) -> list[Path]:
    """Return the files that hold a split; UnknownSizeError for text that is not here."""
    found = []
    for source in sources:
        path = Path(source)
        if source.startswith(HUB) or not path.exists():
            raise UnknownSizeError(
                f"plan: {source} is not here, so its size is not known; run "
                "`python -m train corpus` first, or give [stated] tokens = ... in a recipe made "
                "for the ledger alone"
            )
        found += [p for p in sorted(path.rglob("*")) if p.is_file()] if path.is_dir() else [path]
    return found


def _bytes_a_token(config: Corpus, files: list[Path]) -> float:
    """Return bytes of text a token: counted on a sample where the tokenizer is in a folder here."""
    from train.corpora.text import make_tokenizer

    plain = [path for path in files if path.suffix in PLAIN]
    if not plain or not Path(config.tokenizer or HUB).exists():
        return BYTES_A_TOKEN
    with plain[0].open("rb") as file:
        text = file.read(SAMPLE).decode("utf-8", errors="ignore")
    with suppress(MlpMemError):  # the corpus says so when its turn comes
        ids = make_tokenizer(config, 0)(text, add_special_tokens=False, verbose=False)["input_ids"]
        return len(text.encode()) / len(ids) if ids else BYTES_A_TOKEN
    return BYTES_A_TOKEN


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

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    total = sum(p.numel() for p in model.parameters())
    ends = {id(m.weight): m.weight for m in (model.get_input_embeddings(),
            model.get_output_embeddings())}  # fmt: skip
    outside = sum(math.prod(weight.shape) for weight in ends.values())
    return config.hidden_size, config.vocab_size, total - outside, total
