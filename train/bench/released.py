"""The released code (Binn0/MLPMemory, commit 5b04efb), run from a checkout for comparison.

Its models, losses and builders are imported unchanged and called in the order of its own scripts.
What transformers 5 lacks is added at import. It runs in a separate process, with default malloc.
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
    """Return one optimizer step of the released trainer, on a batch as in train.fit.

    The Python loop that fills its dense targets is excluded: data loaders run it in parallel.
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
    """Return the released builder's loop from neighbours (rows, k) to sparse rows."""
    cls = _import(peer / ROWS).KNNSearchMulti
    builder = cls.__new__(cls)  # its constructor loads an index and a model
    builder.knn_temp, builder.vocab_size, builder.threshold = temperature, vocab, 1e-8
    builder.device, builder.vals = torch.device("cpu"), values.flatten()
    indices = torch.arange(values.numel()).view(values.shape)
    return lambda: builder.sparsify_distribution(builder.knns_to_probs(indices, -distances))


def released_keys(
    peer: Path, model: nn.Module, tokens: Tensor, batch: int, folder: Path
) -> Callable[[], object]:
    """Return the released keying of passages (passages, T): full forward passes and an Arrow file.

    Every call appends to the file in `folder`.
    """
    accelerator = Accelerator(cpu=tokens.device.type == "cpu")
    cls = _import(peer / KEYS).KNNSaverMulti
    saver = cls(str(folder), model.config.hidden_size, accelerator=accelerator)
    saver.break_into(model)

    @torch.no_grad()
    def keys() -> None:
        for ids in tokens.split(batch):
            model(input_ids=ids, labels=ids)

    return keys


def _import(path: Path) -> ModuleType:
    """Return a module of the checkout; MlpMemError if it is missing."""
    if not path.is_file():
        raise MlpMemError(
            "--peer must be a checkout of the released code (github.com/Binn0/MLPMemory at "
            f"5b04efb); got {path.parent}, without {path.name}"
        )
    _add_missing_names()
    spec = importlib.util.spec_from_file_location(f"released_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _add_missing_names() -> None:
    """Add names of transformers 4 and loguru that the released code uses to this process."""
    transformers.modeling_utils.Conv1D = Conv1D
    GPT2PreTrainedModel.all_tied_weights_keys = {}
    try:
        importlib.import_module("loguru")
    except ModuleNotFoundError:
        sys.modules["loguru"] = SimpleNamespace(logger=SimpleNamespace(info=lambda *_: None))
