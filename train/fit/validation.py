"""What a memory makes of positions it never learns from: perplexity of it alone and of the mix."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlpmem.engine.distributions import interpolate
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.retrieval.documents import Documents
from mlpmem.retrieval.passages import forward_positions
from train.fit.loss import row_nll


@dataclass(frozen=True)
class Validation:
    """Positions of documents: what the memory reads there, what comes next, the decoder's nll."""

    keys: Tensor  # (H, D) float32 hidden states
    values: Tensor  # (H,) int64 next tokens
    lm_nll: Tensor  # (H,) nats
    lmbda: float  # weight of the memory in the mix

    @classmethod
    def of(
        cls, decoder: Decoder, documents: Documents, positions: np.ndarray, lmbda: float
    ) -> "Validation":
        """Return the validation on positions of documents, which the decoder runs over once."""
        values = torch.from_numpy(documents.tokens[positions].astype(np.int64))
        keys = torch.empty(len(positions), decoder.hidden_size)
        lm_nll = torch.empty(len(positions))
        for some in forward_positions(decoder, documents, positions):
            log_probs = some.logits.float().log_softmax(-1).cpu()
            lm_nll[some.at] = -log_probs.gather(1, values[some.at, None]).squeeze(1)
            keys[some.at] = some.hidden.float().cpu()
        return cls(keys, values, lm_nll, lmbda)

    @torch.no_grad()
    def measure(self, memory: Memory) -> dict[str, float]:
        """Return val_nll (nats) and val_ppl of the memory, and mix_ppl with the decoder."""
        weight = memory.lm_head.weight
        keys, values = self.keys.to(weight.device, weight.dtype), self.values.to(weight.device)
        nll = torch.cat(
            [
                row_nll(memory.features(some), weight, targets)
                for some, targets in zip(keys.split(1024), values.split(1024), strict=True)
            ]
        ).cpu()
        mix = -interpolate(-self.lm_nll[:, None], -nll[:, None], self.lmbda)
        mean, mix = nll.double().mean(), mix.double()
        figures = {"val_nll": mean, "val_ppl": mean.exp(), "mix_ppl": mix.mean().exp()}
        return {name: float(value) for name, value in figures.items()}
