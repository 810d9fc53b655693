"""Is the decoder frozen? Its weights' hash before and after, and a bitwise test of lambda 0.

Findings are 1 if it holds and 0 if not. Lambda 0 is compared with the plain transformers model,
loaded again without our hook.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from mlpmem.engine.distributions import interpolate, log_softmax
from train.files import digest, file_hash
from train.fit.loss import head_loss
from train.fit.memory_start import new_memory
from train.measure.findings import Finding
from train.studies.run import Run

HEADS = ("decoder", "tied", "free")  # of the memory: it may start from the decoder's or share it
STEPS, ROWS = 3, 64  # of a short training of a memory, after which the decoder is hashed


def frozen(run: Run) -> Iterator[Finding]:
    """Yield whether files, weights and lambda 0 equal the decoder as it was made."""
    outputs, memory = run.manifest("decoder")["outputs"], run.manifest("memory")
    files = {name: file_hash(run.root / "decoder" / name) for name in outputs}
    yield run.finding("memory", "files", "as_made", files == outputs)
    trained_on = memory["inputs"]["decoder"] == digest(files)
    yield run.finding("memory", "files", "as_memory_was_trained_on", trained_on)
    before = weights_hash(run.decoder.model)
    for head in HEADS:
        _train(run, head)
        same = weights_hash(run.decoder.model) == before
        yield run.finding("memory", "weights", "same_after_training", same, head=head, steps=STEPS)
    equal, gap = _lambda_zero(run)
    identical = {"value": float(equal.all()), "n": len(equal)}
    yield run.finding("memory", "held-out", "lambda_0_bit_identical", identical)
    largest = {"value": gap, "n": len(equal)}
    yield run.finding("memory", "held-out", "lambda_0_largest_difference", largest)
    same = weights_hash(run.decoder.model) == before
    yield run.finding("memory", "weights", "same_after_use", same)


def weights_hash(model: nn.Module) -> str:
    """Return the sha256 over names and bytes of a model's state."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _train(run: Run, head: str) -> None:
    """Train a new memory with a kind of head for a few steps of SGD on the first entries."""
    config = replace(run.recipe.memory, head=head, temperature=1.0)
    depth = run.memory.config.depth
    memory = new_memory(config, run.decoder, depth, k=1, temperature=1.0)
    keys = torch.from_numpy(np.asarray(run.store.keys[:ROWS], np.float32))
    values = torch.from_numpy(run.store.values[:ROWS].astype(np.int64))
    weights = [weight for weight in memory.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.1)
    for _ in range(STEPS):
        loss, _, _ = head_loss(memory.features(keys), memory.lm_head.weight, values)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.inference_mode()
def _lambda_zero(run: Run) -> tuple[np.ndarray, float]:
    """Return whether lambda 0 equals the plain decoder, by held-out token, and the largest gap."""
    documents, _ = run.text()
    plain = AutoModelForCausalLM.from_pretrained(
        run.root / "decoder", dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    ).eval()
    equal, gap = [], 0.0
    for p in range(len(documents)):
        ids = torch.from_numpy(documents.passage(p).astype(np.int64))[None]
        ours, theirs = run.decoder.forward(ids), log_softmax(plain(input_ids=ids).logits)
        mixed = interpolate(log_softmax(ours.logits), log_softmax(run.memory(ours.hidden)), 0.0)
        equal.append((mixed == theirs).all(-1)[0].numpy())
        gap = max(gap, float((mixed - theirs).abs().max()))
    return np.concatenate(equal), gap
