"""Log-probs of a small GPT-2 and its memory, for the scripts' tests: python tests/gpt2_numbers.py.

It writes tests/js/gpt2.json. The weights are no random numbers but a formula, which
tests/js/gpt2.test.mjs has too; all of them are exact in half precision.
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from mlpmem.model.memory import Memory, MemoryConfig

FILE = Path(__file__).parent / "js" / "gpt2.json"
CONFIG = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 40, "n_positions": 10,
          "vocab_size": 24}  # fmt: skip
READ = (*CONFIG, "model_type", "activation_function", "layer_norm_epsilon")
IDS = [0, 7, 23, 7, 11, 3, 3, 19, 1, 2]  # as many as there are positions


def weight(name: str, count: int) -> np.ndarray:
    """Return multiples of 1/1024 from -0.49 to 0.49 that depend on a weight's name."""
    seed = sum(map(ord, name))
    return ((np.arange(count) * 131 + seed * 17) % 1009 - 504).astype(np.float32) / 1024


@torch.no_grad()
def filled(model: torch.nn.Module) -> torch.nn.Module:
    """Return a model with the formula's weights."""
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.from_numpy(weight(name, parameter.numel())).view_as(parameter))
    return model.eval()


@torch.no_grad()
def numbers() -> dict:
    """Return configs, ids and log-probs (T, V), as transformers and this project compute them."""
    decoder = filled(GPT2LMHeadModel(GPT2Config(**CONFIG, bos_token_id=0, eos_token_id=1)))
    config = MemoryConfig(16, 24, 2, 40, family="gpt2", norm_eps=1e-3)
    memory = filled(Memory(config))
    states = []  # the input of the last layer's FFN
    decoder.transformer.h[-1].ln_2.register_forward_hook(lambda *call: states.append(call[-1]))
    logits = {"lm": decoder(torch.tensor([IDS])).logits[0], "memory": memory(states[0][0])}
    logs = {name: rows.log_softmax(-1) for name, rows in logits.items()}
    return {
        "config": {name: getattr(decoder.config, name) for name in READ},
        "memory": json.loads(config.to_json()),
        "ids": IDS,
        "logs": {name: np.round(rows.double().numpy(), 6).tolist() for name, rows in logs.items()},
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(numbers()) + "\n", encoding="utf-8")
