"""The released code (Binn0/MLPMemory, commit 5b04efb), run from a checkout, to compare.

Its models, losses and builders are imported as they are, and called in the order in which its own
scripts call them. Nothing of it is kept here; what transformers 5 lacks is lent at import. It runs
in a process of its own, with the malloc it has.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
import transformers.modeling_utils
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import GPT2Config, GPT2PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mlpmem.errors import MlpMemError

MODEL, LOSS = "models/mlpGPT2.py", "utils/cal_loss.py"
ROWS, KEYS = "knn_utils/saveKNNMulti.py", "knn_utils/saveEmbedMulti.py"


def released_step(
    peer: Path, hidden: int, blocks: int, vocab: int, batch: dict[str, Tensor], alpha: float
) -> Callable[[], None]:
    """Return one optimizer step of the released trainer on a batch as `fit` has them.

    Filling its dense targets in a Python loop is left out: data loaders do that beside.
    """
    model_file, loss_file = _import(peer / MODEL), _import(peer / LOSS)
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


def released_rows(
    peer: Path, distances: Tensor, values: Tensor, temperature: float, vocab: int
) -> Callable[[], object]:
    """Return the released builder's way from neighbours (rows, k) to sparse rows, by its loop."""
    maker = _import(peer / ROWS).KNNSearchMulti
    builder = maker.__new__(maker)  # its constructor loads an index and a model
    builder.knn_temp, builder.vocab_size, builder.threshold = temperature, vocab, 1e-8
    builder.device, builder.vals = torch.device("cpu"), values.flatten()
    found = torch.arange(values.numel()).view(values.shape)
    return lambda: builder.sparsify_distribution(builder.knns_to_probs(found, -distances))


def released_keys(
    peer: Path, model: nn.Module, tokens: Tensor, batch: int, folder: Path
) -> Callable[[], object]:
    """Return the released way of keying passages (passages, T): whole forward passes and a file.

    The file is Arrow's, in `folder`; keys beyond the first call are added to it.
    """
    accelerator = Accelerator(cpu=tokens.device.type == "cpu")
    maker = _import(peer / KEYS).KNNSaverMulti
    saver = maker(str(folder), model.config.hidden_size, accelerator=accelerator)
    saver.break_into(model)

    @torch.no_grad()
    def keys() -> None:
        for some in tokens.split(batch):
            model(input_ids=some, labels=some)

    return keys


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
