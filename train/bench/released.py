"""The released trainer's step (Binn0/MLPMemory, commit 5b04efb), run from a checkout, to compare.

Its model and loss are imported as they are; around them stand the trainer's own calls in its order
(anomaly detection, clip, AdamW). Filling its dense targets in a Python loop is left out: data
loaders do that beside. Nothing of it is kept here; what transformers 5 lacks is lent at import.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
import transformers.modeling_utils
from torch import Tensor
from transformers import GPT2Config, GPT2PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mlpmem.errors import MlpMemError

FILES = ("models/mlpGPT2.py", "utils/cal_loss.py")


def released_step(
    peer: Path, hidden: int, blocks: int, vocab: int, batch: dict[str, Tensor], alpha: float
) -> Callable[[], None]:
    """Return one optimizer step of the released code on a batch as `fit` has them."""
    model_file, loss_file = (_import(peer / name) for name in FILES)
    config = GPT2Config(n_embd=hidden, n_layer=blocks, vocab_size=vocab)
    device = batch["keys"].device
    model = model_file.GPT2MLPModel(config=config, input_dim=hidden, output_dim=hidden).to(device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    keys, values = batch["keys"].bfloat16(), batch["targets"]
    dense = torch.zeros(len(values), vocab, device=device)
    dense.scatter_add_(1, batch["token_ids"].long(), batch["probs"].float())
    labels = {"labels": torch.cat([values[:1], values])[None]}
    arguments = SimpleNamespace(alpha=alpha)
    torch.autograd.set_detect_anomaly(True)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(inputs_embeds=keys)
            loss, _, _ = loss_file.kl_loss_embedding_offline(
                logits, labels, None, arguments, dense, values, keys
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _import(path: Path) -> ModuleType:
    """Return a module of the checkout; MlpMemError if it is not there."""
    if not path.is_file():
        raise MlpMemError(
            f"--peer: there is no {path.name} in {path.parent}; give a checkout of the released "
            "code (github.com/Binn0/MLPMemory at 5b04efb)"
        )
    _lend()
    spec = importlib.util.spec_from_file_location(f"released_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _lend() -> None:
    """Put back into this process what the released code expects of transformers 4 and loguru."""
    transformers.modeling_utils.Conv1D = Conv1D
    GPT2PreTrainedModel.all_tied_weights_keys = {}
    try:
        importlib.import_module("loguru")
    except ModuleNotFoundError:
        sys.modules["loguru"] = SimpleNamespace(logger=SimpleNamespace(info=lambda *_: None))
