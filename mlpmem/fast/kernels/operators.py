"""The compiled form of `llama_layers.Operators`: the kernels' arrays from tensors."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpmem.fast.kernels.attend import attend
from mlpmem.fast.kernels.layer import add_norm, gate, rotate
from mlpmem.fast.llama_layers import Pair


class Kernels:
    """What lies between two products, with the arguments and results of `Operators`."""

    @staticmethod
    def add_norm(x: Tensor, delta: Tensor, after: Any, norm: Any, dtype: torch.dtype) -> Tensor:
        out = torch.empty(x.shape, dtype=dtype)
        delta = array(delta) if len(delta) else NO_ROWS[dtype]
        after = NO_WEIGHT[dtype] if after is None else array(after.module.weight.detach())
        weight = array(norm.module.weight.detach())
        eps, one = np.float32(norm.eps), np.float32(norm.one)
        add_norm(array(x), delta, after, weight, eps, one, array(out))
        return out

    @staticmethod
    def gate(gate_up: Tensor, gelu: bool) -> Tensor:
        out = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
        gate(array(gate_up), gelu, array(out))
        return out

    @staticmethod
    def rotate(
        qkv: Tensor, layer: Any, table: Pair, past: int, buffers: Pair, step: bool
    ) -> Tensor:
        (heads, _, size), (keys, values) = layer.heads, buffers
        q = torch.empty(*qkv.shape[:2], heads, size, dtype=torch.float32 if step else keys.dtype)
        norms, eps, one = (NO_WEIGHT[qkv.dtype],) * 2, 0.0, 0.0
        if layer.head_norms is not None:
            norms = [array(norm.module.weight.detach()) for norm in layer.head_norms]
            eps, one = layer.head_norms[0][1:]
        arrays = array(table[0]), array(table[1]), past, array(q), array(keys), array(values)
        rotate(array(qkv), *norms, np.float32(eps), np.float32(one), *arrays)
        return q

    @staticmethod
    def attend(
        q: Tensor, buffers: Pair, span: tuple[int, int], layer: Any, dtype: torch.dtype
    ) -> Tensor:
        out = torch.empty(len(q), q.shape[1] * q.shape[2], dtype=dtype)
        scale, cap = np.float32(layer.scale), np.float32(layer.cap)
        attend(array(q.contiguous()), *map(array, buffers), *span, scale, cap, array(out))
        return out


def array(x: Tensor) -> np.ndarray:
    """Return a tensor's memory as an array, of bfloat16 as int16 bits."""
    return x.view(torch.int16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


NO_ROWS = {
    torch.float32: np.empty((0, 0), np.float32),
    torch.bfloat16: np.empty((0, 0), np.int16),
}
NO_WEIGHT = {dtype: empty[:, :0].reshape(-1) for dtype, empty in NO_ROWS.items()}
