"""Stage memory: an all-MLP that learns to give the datastore's answer; also run as a worker."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mlpmem.datastore import Datastore
from mlpmem.decoder import Decoder
from mlpmem.memory import Memory, MemoryConfig
from train.launch import CHECKPOINT, run_workers
from train.loop import fit
from train.loss import head_loss
from train.processes import disband
from train.recipe import Memory as MemoryRecipe
from train.recipe import fill
from train.stage import Context, finished_manifest, write_json


def make_memory(context: Context) -> dict:
    """Return counts; writes the memory's config.json, model.safetensors and history.json."""
    inputs = {name: str(path) for name, path in context.inputs.items()}
    job = {"inputs": inputs, "seed": context.seed, "config": dataclasses.asdict(context.config)}
    return run_workers("train.memory", context.folder, job, context.config.processes)


def train_worker(folder: Path) -> None:
    """Train on one process of possibly several; the first writes the result."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    config = fill(MemoryRecipe, job["config"], "job.json")
    inputs = {name: Path(path) for name, path in job["inputs"].items()}
    torch.manual_seed(job["seed"])
    decoder = Decoder.load(inputs["decoder"])
    targets = finished_manifest(inputs["targets"])["config"]
    depth = finished_manifest(inputs["datastore"])["config"]["depth"]
    memory = new_memory(config, decoder, depth, targets["k"], targets["temperature"])
    memory.to(getattr(torch, config.dtype))
    rows = TargetRows(inputs["datastore"], inputs["targets"], config, job["seed"])
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    path = folder / CHECKPOINT
    loss = make_loss(config.alpha)
    history = fit(
        memory, rows.batch, loss, rows.steps, config.optimizer, path, "memory", accelerator
    )
    if accelerator.is_main_process:
        memory.to("cpu", torch.float16).save(folder)
        write_json(folder / "history.json", history)


def new_memory(
    config: MemoryRecipe, decoder: Decoder, depth: int, k: int, temperature: float
) -> Memory:
    """Return an untrained memory for a decoder, its head a copy of the decoder's if asked for."""
    memory = Memory(
        MemoryConfig(
            hidden_size=decoder.hidden_size,
            vocab_size=decoder.vocab_size,
            num_layers=config.blocks,
            intermediate_size=config.intermediate_size,
            depth=depth,
            knn_k=k,
            knn_temperature=temperature,
            tokenizer_hash=decoder.tokenizer_hash,
        )
    )
    if config.init_head:
        with torch.no_grad():
            memory.lm_head.weight.copy_(decoder.head_weight)
    return memory


def make_loss(alpha: float):
    """Return loss(memory, batch) -> (loss, {kl, ce}): eq. 6, sparse and chunked."""

    def loss(memory: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        dtype = next(memory.parameters()).dtype
        features = memory.features(batch["keys"].to(dtype))
        value, kl, ce = head_loss(
            features,
            memory.lm_head.weight,
            batch["targets"],
            batch["token_ids"],
            batch["probs"],
            alpha,
        )
        return value, {"kl": kl, "ce": ce}

    return loss


class TargetRows:
    """Rows (key, value, token_ids, probs) in a fresh order each epoch; no state between steps."""

    def __init__(self, datastore: Path, targets: Path, config: MemoryRecipe, seed: int) -> None:
        """Open a datastore's keys and its targets, memory-mapped."""
        store = Datastore.load(datastore)
        arrays = (
            np.load(targets / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("rows", "offsets", "token_ids", "probs")
        )
        self.rows, self.offsets, self.token_ids, self.probs = arrays
        self.keys, self.values = store.keys, store.values
        self.config, self.seed = config, seed
        self.per_epoch = max(1, len(self.rows) // config.batch)
        self.steps = self.per_epoch * config.epochs
        sample = np.asarray(self.keys[self.rows[:4096]], np.float32)
        self.noise = config.noise * float(sample.std())

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """Return keys (b, D), targets (b,), token_ids and probs (b, S) of one process's share."""
        epoch, within = divmod(step, self.per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        at = np.array_split(order, self.per_epoch)[within][rank::world]
        entries = self.rows[at]
        noise = np.random.default_rng([self.seed, step, rank])
        keys = np.asarray(self.keys[entries], np.float32)
        keys += self.noise * noise.standard_normal(keys.shape, np.float32)
        token_ids, probs = self._pad(at)
        return {
            "keys": torch.from_numpy(keys),
            "targets": torch.from_numpy(self.values[entries].astype(np.int64)),
            "token_ids": torch.from_numpy(token_ids),
            "probs": torch.from_numpy(probs),
        }

    def _pad(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the sparse targets of rows as (b, S) arrays, padded with probability 0."""
        starts, sizes = self.offsets[at], self.offsets[at + 1] - self.offsets[at]
        columns = np.arange(max(1, int(sizes.max())))
        real = columns < sizes[:, None]
        source = np.where(real, starts[:, None] + columns, 0)
        token_ids = np.where(real, self.token_ids[source], 0).astype(np.int64)
        probs = np.where(real, self.probs[source], 0).astype(np.float32)
        return token_ids, probs


if __name__ == "__main__":
    train_worker(Path(sys.argv[1]))
    disband()
