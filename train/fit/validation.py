"""Perplexity of a memory, and of its mix with the decoder, on positions held out of training.

Also a run's training curves: losses, validation perplexity and learning rate over steps.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mlpmem.engine.distributions import mix_nll
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.retrieval.documents import Documents
from mlpmem.retrieval.passages import forward_positions
from train.fit.loss import row_nll


@dataclass(frozen=True)
class Validation:
    """H positions of documents, with keys, next tokens and the decoder's nll."""

    keys: Tensor  # (H, K) float32 hidden states, with any context vectors
    values: Tensor  # (H,) int64 next tokens
    lm_nll: Tensor  # (H,) nats
    lmbda: float  # weight of the memory in the mix

    @classmethod
    def of(
        cls, decoder: Decoder, documents: Documents, positions: np.ndarray, lmbda: float
    ) -> "Validation":
        """Return the validation on positions of documents, after one pass of the decoder."""
        values = torch.from_numpy(documents.tokens[positions].astype(np.int64))
        keys = torch.empty(len(positions), decoder.state_size)
        lm_nll = torch.empty(len(positions))
        for batch in forward_positions(decoder, documents, positions):
            log_probs = batch.logits.float().log_softmax(-1).cpu()
            lm_nll[batch.at] = -log_probs.gather(1, values[batch.at, None]).squeeze(1)
            keys[batch.at] = batch.hidden.float().cpu()
        return cls(keys, values, lm_nll, lmbda)

    @torch.no_grad()
    def measure(self, memory: Memory) -> dict[str, float]:
        """Return val_nll (nats) and val_ppl of the memory, and mix_ppl with the decoder."""
        weight = memory.lm_head.weight
        keys, values = self.keys.to(weight.device, weight.dtype), self.values.to(weight.device)
        nll = torch.cat(
            [
                row_nll(memory.features(chunk), weight, targets)
                for chunk, targets in zip(keys.split(1024), values.split(1024), strict=True)
            ]
        ).cpu()
        mean, mix = nll.double().mean(), mix_nll(self.lm_nll, nll, self.lmbda)
        figures = {"val_nll": mean, "val_ppl": mean.exp(), "mix_ppl": mix.mean().exp()}
        return {name: float(value) for name, value in figures.items()}


COLOURS = {
    "loss": "#1f2937",
    "kl": "#c2410c",
    "ce": "#0f766e",
    "val_ppl": "#7c3aed",
    "mix_ppl": "#2563eb",
    "lr": "#6b7280",
}
LABELS = {
    "kl": "KL(kNN ‖ memory)",
    "ce": "cross-entropy",
    "val_ppl": "only the memory",
    "mix_ppl": "mixed with the decoder",
}
PANELS = {  # title: (figures, whether the vertical axis is logarithmic)
    "training loss, nats per token": (("loss", "kl", "ce"), False),
    "validation perplexity": (("val_ppl", "mix_ppl"), True),
    "learning rate": (("lr",), False),
}


def draw_training(history: list[dict], path: Path, title: str) -> None:
    """Write the curves of a log, as returned by `fit`, as PNG, SVG ... by the path's suffix.

    Panels without a figure in the log are left out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {name: p for name, p in PANELS.items() if any(k in history[-1] for k in p[0])}
    figure = Figure(figsize=(4.6 * len(panels), 3.6), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title}: {history[-1]['step']:,} steps", x=0.01, ha="left", fontsize=11)
    for axes, (name, (keys, logarithmic)) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for key in (k for k in keys if k in history[-1]):
            points = [(line["step"], line[key]) for line in history]
            axes.plot(*zip(*points, strict=True), color=COLOURS[key], lw=1.6)
            axes.plot(*points[-1], "o", color=COLOURS[key], ms=3.5, label=_label(key, points[-1]))
        axes.set_title(name, loc="left", fontsize=9, color="#374151")
        axes.set_xlabel("step", fontsize=8)
        axes.set_xlim(left=0)
        if logarithmic:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=8)
        axes.grid(color="#e5e7eb", lw=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def _label(key: str, last: tuple[int, float]) -> str:
    """Return a curve's label in the legend, with its last value."""
    return f"{LABELS.get(key, key)}  {last[1]:.3g}"
