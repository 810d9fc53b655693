"""Stage decoder: an ordinary small Llama, trained on packed passages; also run as a worker."""

import dataclasses
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from mlpmem.documents import Documents
from train.launch import CHECKPOINT, run_workers
from train.loop import fit
from train.loss import head_loss
from train.packing import Rows, pack
from train.processes import disband
from train.recipe import Decoder, Optimizer, fill
from train.stage import Context, write_json


def make_decoder(context: Context) -> dict:
    """Return counts; writes a transformers folder with half-precision weights and tokenizer."""
    corpus, config = str(context.inputs["corpus"]), dataclasses.asdict(context.config)
    job = {"corpus": corpus, "seed": context.seed, "config": config}
    return run_workers("train.decoder", context.folder, job, context.config.processes)


def train_worker(folder: Path) -> None:
    """Train on one process of possibly several; the first writes the result."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    corpus, config = Path(job["corpus"]), fill(Decoder, job["config"], "job.json")
    torch.manual_seed(job["seed"])
    tokenizer = AutoTokenizer.from_pretrained(corpus / "tokenizer")
    model = LlamaForCausalLM(llama_config(config, tokenizer)).to(getattr(torch, config.dtype))
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    draws = sorted(corpus.glob("decoder_*"))
    batches, steps = _draw_batches(draws, config, job["seed"])
    path = folder / CHECKPOINT
    history = fit(
        model, batches, packed_loss, steps, config.optimizer, path, "decoder", accelerator
    )
    if accelerator.is_main_process:
        model.to("cpu", torch.float16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / "history.json", history)


def llama_config(config: Decoder, tokenizer) -> LlamaConfig:
    """Return the transformers configuration of the decoder a recipe asks for."""
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


def packed_loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean cross-entropy (nats) over the packed targets of a batch, and no other log."""
    hidden = model.model(
        input_ids=batch["ids"],
        position_ids=batch["position_ids"],
        attention_mask=batch["attention_mask"],
        use_cache=False,
    ).last_hidden_state
    head = model.lm_head.weight
    loss, _, _ = head_loss(hidden.flatten(0, 1), head, batch["targets"].flatten())
    return loss, {}


def _draw_batches(draws: list[Path], config: Decoder, seed: int):
    """Return (batches(step, rank, world), steps) over the draws, one after another."""

    @cache
    def rows_of(draw: int) -> Rows:
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
    model: nn.Module, documents: Documents, config: Decoder, lr: float, epochs: int, path: Path
) -> list[dict]:
    """Fine-tune `model` in place on documents with AdamW; return the log. For comparison only."""
    passes = [pack(documents, config.row, f"finetune/{epoch}") for epoch in range(epochs)]
    per_epoch = max(1, len(documents.tokens) // config.batch)

    def batches(step: int, rank: int, world: int) -> dict[str, Tensor]:
        rows = passes[step // per_epoch]
        cut = np.array_split(np.arange(len(rows)), per_epoch)[step % per_epoch]
        return rows.batch(cut[rank::world])

    optimizer = Optimizer(lr=lr)
    return fit(model, batches, packed_loss, per_epoch * epochs, optimizer, path, "finetune")


if __name__ == "__main__":
    train_worker(Path(sys.argv[1]))
    disband()
