"""Mixed precision with float32 master weights, AdamW and Muon, one schedule, one clip."""

import torch
from torch import Tensor, nn

from mlpmem.model.families import HEADS
from train.config.tables import OptimizerConfig

COUNTS = 8  # of a step: rows, sums over them, and last the gradient's norm


class MasterOptimizer:
    """Optimizes float32 copies of a model's parameters and writes them back after each step.

    With a muon_lr, Muon (torch.optim.Muon) optimizes the inner matrices, and AdamW embeddings,
    heads, norms and biases. Only matrices have weight decay.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig, steps: int) -> None:
        """Prepare masters and optimizers for a run of `steps` optimizer steps.

        The model must already be on its device. Backward passes add to one float32 vector, of which
        every parameter's grad is a view, whatever the parameter's dtype. The step's counts follow
        the gradients in this vector, so one all-reduce sums both.
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
        """Add rows, and sums over them (at most COUNTS - 2), to the step's counts."""
        self.counts[: len(sums) + 1] += torch.stack([rows, *sums]).detach()

    def step(self, index: int) -> Tensor:
        """Take optimizer step `index` with the accumulated gradient; return the counts (COUNTS,).

        The gradients of all processes are summed, divided by all rows, and clipped. The last count
        is the norm of this mean before clipping. Nothing here synchronises with the device.
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
        """Copy the masters into the model, rounded to its dtype."""
        for param, master in zip(self.params, self.masters, strict=True):
            if param is not master:
                param.copy_(master)

    def finish(self) -> None:
        """Replace the model's parameters by the float32 masters, without gradients."""
        for param, master in zip(self.params, self.masters, strict=True):
            param.grad = None
            param.data = master.data

    def weights(self) -> dict[str, Tensor]:
        """Return the masters by parameter name."""
        return {n: m.detach() for n, m in zip(self.names, self.masters, strict=True)}

    def state(self) -> dict[str, Tensor]:
        """Return all tensors of masters and optimizers by name, for a checkpoint."""
        tensors = {f"master.{i}": m.detach() for i, m in enumerate(self.masters)}
        for o, optimizer in enumerate(self.optimizers):
            for i, values in optimizer.state_dict()["state"].items():
                tensors |= {f"state.{o}.{i}.{k}": torch.as_tensor(v) for k, v in values.items()}
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Load the result of `state` into masters, optimizers and the model."""
        with torch.no_grad():
            for i, master in enumerate(self.masters):
                master.copy_(tensors[f"master.{i}"])
        self._write_back()
        for o, optimizer in enumerate(self.optimizers):
            state_dict = optimizer.state_dict()
            state_dict["state"] = {}
            for name, value in tensors.items():
                kind, *path = name.split(".")
                if kind == "state" and int(path[0]) == o:
                    state_dict["state"].setdefault(int(path[1]), {})[path[2]] = value
            optimizer.load_state_dict(state_dict)


def schedule(index: int, steps: int, config: OptimizerConfig) -> float:
    """Return a step's factor on the learning rate: linear warm-up, then linear to `final`."""
    warm = max(1, round(config.warmup * steps))
    if index < warm:
        return (index + 1) / warm
    return 1.0 - (1.0 - config.final) * (index - warm) / max(1, steps - warm)


def _is_inner(name: str, param: Tensor) -> bool:
    """Return whether Muon optimizes a parameter other than an embedding: matrices except heads."""
    return param.dim() == 2 and HEADS.isdisjoint(name.split("."))


def _master(param: nn.Parameter) -> nn.Parameter:
    """Return a float32 copy of a parameter, or the parameter itself if it is float32."""
    return param if param.dtype == torch.float32 else nn.Parameter(param.detach().float())
