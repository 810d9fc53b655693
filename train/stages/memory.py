"""Stage memory: an all-MLP trained to predict the datastore's answers; also runs as a worker."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from torch import Tensor, nn

from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.documents import Documents
from train.config.load import fill
from train.config.tables import MemoryFitConfig, TargetsConfig
from train.files import write_json
from train.fit.checkpoint import DAMAGED
from train.fit.context_rows import ContextReader, ContextRows, token_weights, with_rivals
from train.fit.kept_rows import KeptRows, joined_rows
from train.fit.loop import fit, step_seed
from train.fit.loss import head_loss
from train.fit.memory_start import (
    new_memory,
    standardise,
    start_as_decoder,
    start_as_identity,
)
from train.fit.validation import Validation, draw_training
from train.fit.workers import CHECKPOINT, run_worker, run_workers
from train.run.stage import StageContext, finished_manifest
from train.stages.targets import open_targets

BEST = "best.safetensors"  # weights of the best validation loss so far
HELD_OUT, RIVALS = 2**32, 2**33  # seeds that no epoch has
MOST_RIVAL = 0.6  # the largest share of another row's words


def make_memory(context: StageContext, detached: bool = False) -> dict:
    """Return counts; writes config.json, model.safetensors, history.json and training.png.

    With `detached`, one process of a launch trains it without the others.
    """
    inputs = {name: str(path) for name, path in context.inputs.items()}
    job = {"inputs": inputs, "seed": context.seed, "config": dataclasses.asdict(context.config)}
    processes = context.config.processes
    counts = run_workers("train.stages.memory", context.folder, job, processes, detached)
    counts["scratch"] += [BEST, BEST + DAMAGED]
    return counts


def train_worker(folder: Path) -> None:
    """Train in one of the launch's processes; the main process writes the result."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    config = fill(MemoryFitConfig, job["config"], "job.json")
    inputs = {name: Path(path) for name, path in job["inputs"].items()}
    accelerator = _accelerator(config, folder)
    torch.manual_seed(job["seed"])
    targets = finished_manifest(inputs["targets"])["config"]
    depth = finished_manifest(inputs["datastore"])["config"]["depth"]
    decoder = Decoder.load(inputs["decoder"], depth=depth)
    memory = new_memory(config, decoder, depth, targets["k"], targets["temperature"])
    if config.context:
        documents = Documents.load(inputs["datastore"] / "documents")
        memory.token_weights.copy_(token_weights(config.token_weights, decoder, documents))
        memory.bind(decoder)
    rows = TargetRows(
        inputs["datastore"], inputs["targets"], config, job["seed"], accelerator.device, decoder
    )
    keys, values = rows.sample()
    if config.context:
        standardise(memory, keys)
    if config.start == "decoder" and config.head != "free":
        start_as_decoder(memory, decoder, keys, values)
    if config.start == "identity":
        start_as_identity(memory, decoder)
    memory.to(accelerator.device, getattr(torch, config.dtype))
    validate = None
    if len(rows.held_out) and accelerator.is_main_process:
        validation = Validation.of(decoder, rows.documents, rows.held_out, config.lmbda)
        validate = partial(validation.measure, memory)
    del decoder
    history = fit(
        memory,
        rows.batch,
        make_loss(memory, config),
        rows.steps,
        config.optimizer,
        folder / CHECKPOINT,
        "memory",
        accelerator,
        seed=job["seed"],
        micro=config.micro_batch,
        validate=validate,
        best=folder / BEST if config.keep == "best" and len(rows.held_out) else None,
    )
    if accelerator.is_main_process:
        soften(memory.to("cpu", torch.float32), config.temperature).to(torch.float16).save(folder)
        write_json(folder / "history.json", history)
        draw_training(history, folder / "training.png", "memory")
    for tracker in accelerator.trackers:  # end_training would end the process group too
        tracker.finish()


@torch.no_grad()
def soften(memory: Memory, temperature: float) -> Memory:
    """Return the memory, its head divided by a temperature in place; a tied head stays."""
    if not memory.config.tied_head:
        memory.lm_head.weight.div_(temperature)
    return memory


def _accelerator(config: MemoryFitConfig, folder: Path) -> Accelerator:
    """Return this process's accelerator with trackers started; MlpMemError if one is missing."""
    available = [str(name) for name in get_available_trackers()]
    for name in config.trackers:
        if name not in available:
            raise MlpMemError(
                f"memory: tracker {name!r} is not installed or not known to accelerate; use one of "
                f"{', '.join(available) or 'none'}, install its package, or leave it out"
            )
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        log_with=list(config.trackers) or None,
        project_dir=folder / "logs",
    )
    if config.trackers:
        values = dataclasses.asdict(config).items()
        plain = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in values}
        accelerator.init_trackers("memory", plain)
    return accelerator


def make_loss(memory: Memory, config: MemoryFitConfig):
    """Return loss(memory, batch) -> (loss, {kl, ce}): eq. 6 in nats, summed over rows, sparse."""
    head = memory.lm_head.weight
    compiled = config.compile == "on" or (config.compile == "auto" and head.is_cuda)
    features_of = torch.compile(memory.features) if compiled else memory.features

    def loss(_: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        features = features_of(batch["keys"].to(head.dtype))
        sparse = batch["token_ids"], batch["probs"]
        alpha = batch.get("alpha", config.alpha)
        value, kl, ce = head_loss(
            features, head, batch["targets"], *sparse, alpha, head_grad=head.grad
        )
        return value, {"kl": kl, "ce": ce}

    return loss


class TargetRows:
    """Rows (key, value, token_ids, probs) in a new order each epoch; no state between steps.

    Order and noise depend only on seed and step, so a run is the same for any number of processes.
    Rows of what must stay the decoder's (fit/kept_rows.py) follow those of an epoch.
    """

    def __init__(
        self,
        datastore: Path,
        targets: Path,
        config: MemoryFitConfig,
        seed: int,
        device: torch.device | str = "cpu",
        decoder: Decoder | None = None,
    ) -> None:
        """Open a datastore and its targets, stored or searched; batches come on `device`.

        Context vectors need the decoder.
        """
        store = self.store = Datastore.load(datastore)
        self.device = torch.device(device)
        recipe = finished_manifest(targets)["config"]
        recipe = fill(TargetsConfig, {k: v for k, v in recipe.items() if k != "seed"}, "targets")
        self.targets = open_targets(store, targets, recipe, self.device, seed)
        self.rows = np.load(targets / "rows.npy", mmap_mode="r", allow_pickle=False)
        self.keys, self.values_of, self.documents = store.keys, store.values_of, store.documents
        self.config, self.seed = config, seed
        out = min(config.validation_rows, len(self.rows) // 10)
        shuffled = np.random.default_rng([seed, HELD_OUT]).permutation(len(self.rows))
        self.held_out = store.positions[self.rows[shuffled[:out]]]
        self._train_rows = np.sort(shuffled[out:])
        self.per_epoch = max(1, len(self._train_rows) // config.batch)
        self.steps = self.per_epoch * config.epochs
        self._cached_order = (-1, self._train_rows)  # (epoch, order)
        self.words, reader = None, None
        if decoder is not None and decoder.context is not None:
            reader = ContextReader(decoder, decoder.context)
            self.words = ContextRows(reader, self.documents, store.positions[self.rows])
        self.kept = KeptRows.of(datastore, reader) if config.kept else None
        if self.words is not None:
            spread = self.sample()[0].std(0).to(self.device)
        else:
            spread = float(np.asarray(self.keys[self.rows[:4096]], np.float32).std())
        self.noise = config.noise * spread

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """Return keys (b, D), targets (b,), token_ids and probs (b, S): one process's share."""
        epoch, within = divmod(step, self.per_epoch)
        size, extra = divmod(len(self._train_rows), self.per_epoch)
        start = within * size + min(within, extra)
        batch = self._order(epoch)[start : start + size + (within < extra)]
        at = batch[rank::world]
        entries = self.rows[at]
        token_ids, probs = self.targets.rows(at)
        self._check(step, entries, probs)
        rows = {
            "keys": self._with_rivals(step, batch, rank, world).to(self.device),
            "targets": self._to_device(self.values_of(entries).astype(np.int64)),
            "token_ids": self._to_device(token_ids),
            "probs": self._to_device(probs),
        }
        sizes = [len(batch)]
        if self.kept is not None:
            kept = self.kept.draw(self.config.kept, step_seed(self.seed, step), rank, world)
            kept = {name: value.to(self.device) for name, value in kept.items()}
            alpha = torch.full((len(at),), self.config.alpha, device=self.device)
            rows = joined_rows(rows | {"alpha": alpha}, kept)
            sizes.append(self.config.kept)
        if self.config.noise:
            generator = torch.Generator(self.device).manual_seed(step_seed(self.seed, step))
            width, options = rows["keys"].shape[1], {"generator": generator, "device": self.device}
            noise = [torch.randn(size, width, **options)[rank::world] for size in sizes]
            rows["keys"] += self.noise * torch.cat(noise)
        return rows

    def _keys(self, at: np.ndarray) -> Tensor:
        """Return the keys (b, K) of rows: hidden states, then any context vectors."""
        keys = torch.from_numpy(np.asarray(self.keys[self.rows[at]])).float()
        return keys if self.words is None else torch.cat([keys, self.words.at(at)], 1)

    def _with_rivals(self, step: int, batch: np.ndarray, rank: int, world: int) -> Tensor:
        """Return a process's keys of a batch; some have read the words of another row, too."""
        keys = self._keys(batch[rank::world])
        if self.words is None or not self.config.rivals:
            return keys
        random = np.random.default_rng([self.seed, step, RIVALS])
        chosen = (random.random(len(batch)) < self.config.rivals)[rank::world]
        shares = MOST_RIVAL * random.random(len(batch))[rank::world][chosen]
        others = random.permutation(batch)[rank::world][chosen]
        if chosen.any():
            size = self.keys.shape[1]
            mine, words = keys[torch.from_numpy(chosen), size:], self.words.at(others)
            shares = torch.from_numpy(shares).float()
            mixed = with_rivals(mine, words, shares, self.words.reader.context)
            keys[torch.from_numpy(chosen), size:] = mixed
        return keys

    def sample(self, count: int = 2048) -> tuple[Tensor, Tensor]:
        """Return keys (n, K) and values (n,) of evenly spaced training rows, on the CPU."""
        at = self._train_rows[:: max(1, len(self._train_rows) // count)][:count]
        values = self.values_of(self.rows[at]).astype(np.int64)
        return self._keys(at), torch.from_numpy(values)

    def _order(self, epoch: int) -> np.ndarray:
        """Return the training rows in an epoch's order; the last order is cached."""
        if self._cached_order[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(self._train_rows)
            self._cached_order = epoch, order
        return self._cached_order[1]

    def _to_device(self, array: np.ndarray) -> Tensor:
        """Return an array as a tensor on the device; a copy to a GPU is asynchronous."""
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _check(self, step: int, entries: np.ndarray, probs: np.ndarray) -> None:
        """Raise MlpMemError for rows with empty targets."""
        empty = np.flatnonzero(~(probs > 0).any(1))
        if len(empty) and self.config.alpha > 0:
            raise MlpMemError(
                f"step {step + 1}: {len(empty)} rows have empty targets, the first is entry "
                f"{entries[empty[0]]}; every row needs a neighbour other than itself. Is the "
                "datastore far smaller than k, or are the targets truncated? Make the targets again"
            )


if __name__ == "__main__":
    run_worker(train_worker)
