"""Stage decoder: a new small Llama or an existing decoder, trained on packed passages or unchanged.

It also runs as a worker.
"""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from mlpmem.errors import MlpMemError
from mlpmem.model.capture import added_mask
from mlpmem.model.decoder import Decoder
from mlpmem.model.families import family_of, logit_bound, logit_divisor, uses_alibi
from mlpmem.model.tokenizer import load_tokenizer, tokenizer_hash
from mlpmem.retrieval.documents import Documents
from train.config.load import fill
from train.config.tables import DecoderConfig, OptimizerConfig
from train.corpora.source import load_source
from train.files import write_json
from train.fit.loop import fit
from train.fit.loss import head_loss
from train.fit.packing import PackedRows, pack
from train.fit.workers import CHECKPOINT, run_worker, run_workers
from train.run.processes import process_group
from train.run.stage import StageContext

CACHED_ROW = 256  # tokens; materialised attention scores are faster up to this row length


def make_decoder(context: StageContext) -> dict:
    """Return counts; writes a transformers folder with half-precision weights and tokenizer."""
    corpus, config = context.inputs["corpus"], context.config
    tokenizer = load_tokenizer(str(corpus / "tokenizer"))
    source = check_source(config, tokenizer) if config.source else None
    if not config.epochs:
        if process_group().is_main:
            if source and source.gguf_sha256:  # a memory of this decoder will name the file
                source.model.config.gguf_sha256 = source.gguf_sha256
            model = source.model if source else new_model(config, tokenizer)
            save(model, tokenizer, context.folder)
        return {}
    del source
    job = {
        "corpus": str(corpus), "seed": context.seed, "config": dataclasses.asdict(config),
    }  # fmt: skip
    return run_workers("train.stages.decoder", context.folder, job, context.config.processes)


def train_worker(folder: Path) -> None:
    """Train in one of the launch's processes; the main process writes the result."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    corpus, config = Path(job["corpus"]), fill(DecoderConfig, job["config"], "job.json")
    torch.manual_seed(job["seed"])
    tokenizer = load_tokenizer(str(corpus / "tokenizer"))
    model = new_model(config, tokenizer).to(getattr(torch, config.dtype))
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    batches, steps = _draw_batches(training_parts(corpus) * config.epochs, config, job["seed"])
    path = folder / CHECKPOINT
    with quick_attention(model, config.row):
        history = fit(
            model, batches, packed_loss, steps, config.optimizer, path, "decoder", accelerator
        )
    if accelerator.is_main_process:
        save(model, tokenizer, folder)
        write_json(folder / "history.json", history)


def training_parts(corpus: Path) -> list[Path]:
    """Return the folders a decoder learns from: its own draws, else the memory's documents."""
    return sorted(corpus.glob("decoder_*")) or [corpus / "memory"]


def new_model(config: DecoderConfig, tokenizer) -> nn.Module:
    """Return the model before training: the recipe's source, or random weights."""
    if config.source:
        model = load_source(config.source).model.requires_grad_(True)
        vars(model.config).pop("gguf_sha256", None)  # trained, it is another decoder
        return model
    return LlamaForCausalLM(llama_config(config, tokenizer))


def save(model: nn.Module, tokenizer, folder: Path) -> None:
    """Write a transformers folder: float16 weights, as in a bundle, and the tokenizer.

    MlpMemError if a weight is not finite in float16.
    """
    half = model.to("cpu", torch.float16)
    if not all(weight.isfinite().all() for weight in half.parameters()):
        raise MlpMemError(
            "decoder: weights must be finite in float16, the saved format; got one that is not. "
            "Use another decoder"
        )
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def check_source(config: DecoderConfig, tokenizer) -> Decoder:
    """Return a recipe's source; MlpMemError unless it fits the corpus's tokenizer and the row."""
    decoder = load_source(config.source)
    if decoder.tokenizer_hash != tokenizer_hash(tokenizer):
        raise MlpMemError(
            f"decoder: the corpus's tokenizer ({len(tokenizer)} tokens) must be that of "
            f"{config.source} ({len(decoder.tokenizer)} tokens). Leave tokenizer out of [corpus], "
            "so that the decoder's own is used, and make the corpus again"
        )
    if len(tokenizer) > decoder.vocab_size:
        raise MlpMemError(
            f"decoder: {config.source} has {decoder.vocab_size} logits, fewer than its tokenizer's "
            f"{len(tokenizer)} tokens; the folder mixes two models, get it again"
        )
    if config.epochs:
        check_trainable(decoder.model)
    if config.epochs and config.row > decoder.max_positions:
        raise MlpMemError(
            f"decoder: row must be at most {decoder.max_positions} for {config.source}; got "
            f"{config.row}. Lower row in [decoder], and passage in [corpus]"
        )
    return decoder


def check_trainable(model: nn.Module) -> None:
    """Raise MlpMemError for a decoder whose forward pass the packed loss cannot reproduce."""
    name = model.config.model_type
    family = family_of(name)
    if logit_bound(model.config, family) is not None:
        why = f"caps its logits ({family.softcap}), which the training loss does not"
    elif uses_alibi(model.config, family):
        why = "attends by position in the row (ALiBi), and packed passages share a row"
    else:
        return
    raise MlpMemError(
        f"decoder: {name} {why}; set epochs = 0 in [decoder] to use it unchanged, and leave "
        "[finetuned] out"
    )


def llama_config(config: DecoderConfig, tokenizer) -> LlamaConfig:
    """Return the transformers configuration of a recipe's new decoder."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )


@contextmanager
def quick_attention(model: nn.Module, row: int) -> Iterator[None]:
    """Use the fastest attention for training on rows of this many tokens.

    On a CPU, torch's backward of fused attention costs more than it saves while a row's scores fit
    the cache. Eager attention took 0.87 to 0.89 of the time per step (128 tokens, 320 wide, 8
    layers) and 0.87 to 0.91 (256, 128, 4), in two runs each.
    """
    usual = model.config._attn_implementation
    if usual != "sdpa" or row > CACHED_ROW or not next(model.parameters()).is_cpu:
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def packed_loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the summed cross-entropy (nats) of a batch's packed targets, and no other figures."""
    hidden = model.base_model(
        input_ids=batch["ids"],
        position_ids=batch["position_ids"],
        attention_mask=added_mask(model, batch["attention_mask"]),
        use_cache=False,
    ).last_hidden_state
    hidden, head = hidden.flatten(0, 1), model.get_output_embeddings()
    weight = head.weight
    if head.bias is not None:  # as a column of the weight whose input is 1
        hidden = torch.cat([hidden, torch.ones_like(hidden[:, :1])], 1)
        weight = torch.cat([weight, head.bias[:, None]], 1)
    divisor = logit_divisor(model.config, family_of(model.config.model_type))
    loss, _, _ = head_loss(hidden / divisor, weight, batch["targets"].flatten())
    return loss, {}


def _draw_batches(draws: list[Path], config: DecoderConfig, seed: int):
    """Return (batches(step, rank, world), steps) over the draws in order."""

    @lru_cache(1)
    def rows_of(draw: int) -> PackedRows:
        return pack(Documents.load(draws[draw]), config.row, f"{seed}/{draw}")

    tokens = [len(np.load(d / "tokens.npy", mmap_mode="r")) for d in draws]
    per_draw = [max(1, count // config.batch) for count in tokens]
    ends = np.cumsum(per_draw)

    def batches(step: int, rank: int, world: int) -> dict[str, Tensor]:
        draw = int(np.searchsorted(ends, step, side="right"))
        within = step - (int(ends[draw - 1]) if draw else 0)
        rows = rows_of(draw)
        cut = np.array_split(np.arange(len(rows)), per_draw[draw])[within]
        return rows.batch(cut[rank::world])

    return batches, int(ends[-1])


def finetune(
    model: nn.Module,
    documents: Documents,
    config: DecoderConfig,
    lr: float,
    epochs: int,
    path: Path,
    most: int = 2**62,
) -> list[dict]:
    """Fine-tune `model` in place on documents with AdamW, for comparison; return the log.

    It reads at most so many tokens.
    """
    check_trainable(model)
    passes = [pack(documents, config.row, f"finetune/{epoch}") for epoch in range(epochs)]
    per_epoch = max(1, len(documents.tokens) // config.batch)

    def batches(step: int, rank: int, world: int) -> dict[str, Tensor]:
        rows = passes[step // per_epoch]
        cut = np.array_split(np.arange(len(rows)), per_epoch)[step % per_epoch]
        return rows.batch(cut[rank::world])

    optimizer, steps = OptimizerConfig(lr=lr), min(per_epoch * epochs, max(1, most // config.batch))
    with quick_attention(model, config.row):
        return fit(model, batches, packed_loss, steps, optimizer, path, "finetune")


if __name__ == "__main__":
    run_worker(train_worker)
