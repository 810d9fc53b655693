"""Mixed precision with float32 master weights, AdamW and Muon, one schedule, one clip."""

import torch
from torch import Tensor, nn

from train.recipe import Optimizer


class MasterOptimizer:
    """Optimizes float32 copies of a model's parameters and writes them back after each step.

    Muon (torch.optim.Muon) takes the inner matrices, where asked for; AdamW takes embeddings,
    heads, norms and biases. Weight decay falls on matrices only.
    """

    def __init__(self, model: nn.Module, config: Optimizer, steps: int) -> None:
        """Prepare masters and optimizers for a run of `steps` optimizer steps."""
        self.config, self.steps = config, steps
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.params = [p for _, p in named]
        self.masters = [nn.Parameter(p.detach().float().clone()) for p in self.params]
        inner = [config.muon_lr > 0 and _is_inner(name, p) for name, p in named]
        pairs = list(zip(self.masters, inner, strict=True))
        rest = [m for m, muon in pairs if not muon]
        groups = [
            {"params": [m for m in rest if m.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [m for m in rest if m.dim() < 2], "weight_decay": 0.0},
        ]
        groups = [g for g in groups if g["params"]]
        self.optimizers = [torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95))]
        if matrices := [m for m, muon in pairs if muon]:
            self.optimizers.append(
                torch.optim.Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay)
            )
        self.rates = [config.lr, config.muon_lr]

    def gradient(self) -> Tensor:
        """Return all gradients as one float32 vector, ready for a single all-reduce."""
        return torch.cat([p.grad.float().flatten() for p in self.params])

    def step(self, index: int, gradient: Tensor) -> float:
        """Take optimizer step `index` with a `gradient()` vector; return its norm."""
        norm = float(gradient.norm())
        gradient = gradient * min(1.0, self.config.clip / (norm + 1e-6))
        for master, part in zip(
            self.masters, gradient.split([m.numel() for m in self.masters]), strict=True
        ):
            master.grad = part.view_as(master)
        share = schedule(index, self.steps, self.config)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            optimizer.step()
        with torch.no_grad():
            for param, master in zip(self.params, self.masters, strict=True):
                param.copy_(master)
                param.grad = None
        return norm

    def state(self) -> dict[str, Tensor]:
        """Return every tensor of masters and optimizers by name, for a checkpoint."""
        tensors = {f"master.{i}": m.detach() for i, m in enumerate(self.masters)}
        for o, optimizer in enumerate(self.optimizers):
            for i, values in optimizer.state_dict()["state"].items():
                tensors |= {f"state.{o}.{i}.{k}": torch.as_tensor(v) for k, v in values.items()}
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `state` returned, into masters, optimizers and the model."""
        with torch.no_grad():
            for i, (param, master) in enumerate(zip(self.params, self.masters, strict=True)):
                master.copy_(tensors[f"master.{i}"])
                param.copy_(master)
        for o, optimizer in enumerate(self.optimizers):
            whole = optimizer.state_dict()
            whole["state"] = {}
            for name, value in tensors.items():
                kind, *where = name.split(".")
                if kind == "state" and int(where[0]) == o:
                    whole["state"].setdefault(int(where[1]), {})[where[2]] = value
            optimizer.load_state_dict(whole)


def schedule(index: int, steps: int, config: Optimizer) -> float:
    """Return the learning rate's share at a step: linear warm-up, then linear to `final`."""
    warm = max(1, round(config.warmup * steps))
    if index < warm:
        return (index + 1) / warm
    return 1.0 - (1.0 - config.final) * (index - warm) / max(1, steps - warm)


def _is_inner(name: str, param: Tensor) -> bool:
    """Return whether Muon takes it: a matrix that is neither an embedding nor a head."""
    return param.dim() == 2 and not any(word in name for word in ("embed", "wte", "lm_head"))
