"""Mixed precision with float32 master weights, AdamW and Muon, one schedule, one clip."""

import torch
from torch import Tensor, nn

from mlpmem.model.families import HEADS
from train.config.tables import OptimizerConfig

COUNTS = 8  # rows, what is summed over them, and last the gradient's norm


class MasterOptimizer:
    """Optimizes float32 copies of a model's parameters and writes them back after each step.

    Muon (torch.optim.Muon) takes the inner matrices, where asked for; AdamW takes embeddings,
    heads, norms and biases. Weight decay falls on matrices only.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig, steps: int) -> None:
        """Prepare masters and optimizers for a run of `steps` optimizer steps.

        The model must be on its device already. Backward passes add to one float32 vector, of which
        every parameter's grad is a view, whatever the parameter's own type; behind the gradients it
        holds the step's counts, so that one sum over processes takes both.
        """
        self.config, self.steps = config, steps
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.names, self.params = [n for n, _ in named], [p for _, p in named]
        self.masters = [_master(p) for p in self.params]
        sizes = [p.numel() for p in self.params]
        self._flat = torch.zeros(sum(sizes) + COUNTS, device=self.params[0].device)
        self._gradient, self.counts = self._flat.split([sum(sizes), COUNTS])
        views = self._gradient.split(sizes)
        for param, master, view in zip(self.params, self.masters, views, strict=True):
            param.grad_dtype = torch.float32
            param.grad = master.grad = view.view_as(param)
        tables = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
        inner = [config.muon_lr > 0 and p not in tables and _is_inner(n, p) for n, p in named]
        pairs = list(zip(self.masters, inner, strict=True))
        rest = [m for m, muon in pairs if not muon]
        groups = [
            {"params": [m for m in rest if m.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [m for m in rest if m.dim() < 2], "weight_decay": 0.0},
        ]
        groups = [g for g in groups if g["params"]]
        self.optimizers = [torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95), fused=True)]
        if matrices := [m for m, muon in pairs if muon]:
            self.optimizers.append(
                torch.optim.Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay)
            )
        self.rates = [config.lr, config.muon_lr]

    def count(self, rows: Tensor, sums: list[Tensor]) -> None:
        """Add to the step's counts: rows, and what was summed over them (at most COUNTS - 2)."""
        self.counts[: len(sums) + 1] += torch.stack([rows, *sums]).detach()

    def step(self, index: int) -> Tensor:
        """Take optimizer step `index` with the gathered gradient; return its counts, (COUNTS,).

        Gradients are sums over rows, of this process and then of all; they are divided by all rows
        here, and clipped. The last count is the norm of that mean. Nothing waits for the device.
        """
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._flat)
        rows = self.counts[0].clamp_min(1)
        norm = self._gradient.norm() / rows
        self._gradient.mul_((self.config.clip / (norm + 1e-6)).clamp_max(1) / rows)
        share = schedule(index, self.steps, self.config)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            optimizer.step()
        self._write_back()
        self.counts[-1] = norm
        counts = self.counts.clone()
        self._flat.zero_()
        return counts

    @torch.no_grad()
    def _write_back(self) -> None:
        """Round the masters into the model."""
        for param, master in zip(self.params, self.masters, strict=True):
            if param is not master:
                param.copy_(master)

    def finish(self) -> None:
        """Leave the float32 masters themselves in the model, and no gradient."""
        for param, master in zip(self.params, self.masters, strict=True):
            param.grad = None
            param.data = master.data

    def weights(self) -> dict[str, Tensor]:
        """Return the masters by their parameters' names."""
        return {n: m.detach() for n, m in zip(self.names, self.masters, strict=True)}

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
            for i, master in enumerate(self.masters):
                master.copy_(tensors[f"master.{i}"])
        self._write_back()
        for o, optimizer in enumerate(self.optimizers):
            whole = optimizer.state_dict()
            whole["state"] = {}
            for name, value in tensors.items():
                kind, *where = name.split(".")
                if kind == "state" and int(where[0]) == o:
                    whole["state"].setdefault(int(where[1]), {})[where[2]] = value
            optimizer.load_state_dict(whole)


def schedule(index: int, steps: int, config: OptimizerConfig) -> float:
    """Return the learning rate's share at a step: linear warm-up, then linear to `final`."""
    warm = max(1, round(config.warmup * steps))
    if index < warm:
        return (index + 1) / warm
    return 1.0 - (1.0 - config.final) * (index - warm) / max(1, steps - warm)


def _is_inner(name: str, param: Tensor) -> bool:
    """Return whether Muon takes a parameter that is no embedding: a matrix, but not a head."""
    return param.dim() == 2 and HEADS.isdisjoint(name.split("."))


def _master(param: nn.Parameter) -> nn.Parameter:
    """Return a float32 copy of a parameter, or the parameter itself where it is float32."""
    return param if param.dtype == torch.float32 else nn.Parameter(param.detach().float())
