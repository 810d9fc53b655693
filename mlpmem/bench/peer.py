"""The released code's fused decoding (Binn0/MLPMemory, commit 5b04efb), run from a checkout.

Its model is imported as it is and given the same decoder and the same memory weights; what
transformers 5 lacks is lent at import (three places). Nothing of it is kept here.
"""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers.modeling_utils
from transformers import GPT2Config, GPT2PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mlpmem.errors import MlpMemError
from mlpmem.model.memory import Memory


def released_model(peer: Path, decoder: torch.nn.Module, memory: Memory, lmbda: float) -> Any:
    """Return the released fused model of a GPT-2 decoder and a memory, the weights shared."""
    transformers.modeling_utils.Conv1D = Conv1D
    GPT2PreTrainedModel.all_tied_weights_keys = {}
    fused, mlp = (_import(peer / "models" / name) for name in ("mlpMemory.py", "mlpGPT2.py"))
    fused.MLPMemory._supports_sdpa = True
    shape = memory.config
    config = GPT2Config(
        n_embd=shape.hidden_size, n_layer=shape.num_layers, vocab_size=shape.vocab_size
    )
    sizes = {"input_dim": shape.hidden_size, "output_dim": shape.hidden_size}
    with torch.device("meta"):
        theirs = mlp.GPT2MLPModel(config=config, **sizes)
    theirs.load_state_dict(memory.state_dict(), assign=True)
    return fused.MLPMemory(decoder, theirs.eval(), lmbda=lmbda).eval()


def _import(path: Path) -> ModuleType:
    """Return a module of the checkout; MlpMemError if it is not there."""
    if not path.is_file():
        raise MlpMemError(
            f"--peer: there is no {path.name} in {path.parent}; give a checkout of the released "
            "code (github.com/Binn0/MLPMemory at 5b04efb)"
        )
    spec = importlib.util.spec_from_file_location(f"released_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
