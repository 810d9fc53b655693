"""What a Llama computes between two products, compiled by numba: one call each, without the GIL.

Only `llama_pass.py` imports this module, in the background, because it imports numba. numba caches
compiled code next to this file or in the user's cache folder. Rows are B x T positions. Numbers are
float32 or the bits of bfloat16 (int16); sums are float32.
"""

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from mlpmem.fast.llama_layers import Pair

JIT = {"fastmath": True, "nogil": True, "cache": True, "error_model": "numpy"}
LOG2E, LN2_HIGH, LN2_LOW = (
    np.float32(1.44269504),
    np.float32(0.693359375),
    np.float32(-2.12194440e-4),
)
FLOOR, CEIL = np.float32(-87.0), np.float32(88.0)
# coefficients of (exp(r) - 1 - r) / r**2 for |r| <= ln 2 / 2 (Cephes)
P0, P1, P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
P3, P4, P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
HALF, ONE, ZERO = np.float32(0.5), np.float32(1), np.float32(0)
LOWEST = np.float32(-1e30)
BLOCK = 64  # positions widened at a time: 16 KB of a head's keys, which stay in the L1 cache
GELU, CUBE = np.float32(1.5957691216), np.float32(0.044715)  # 2 sqrt(2 / pi)


@intrinsic
def wide(context, x):
    """Return x as float32: bits of bfloat16 are widened, a float32 is returned unchanged."""

    def make(lower, builder, signature, args):
        if signature.args[0] == types.float32:
            return args[0]
        bits = builder.shl(builder.zext(args[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(bits, ir.FloatType())

    if x in (types.float32, types.int16):
        return types.float32(x), make
    return None


@intrinsic
def like(context, x, out):
    """Return a float32 x in the type of array `out`: the nearest bfloat16's bits, or float32."""

    def make(lower, builder, signature, args):
        if signature.args[1].dtype == types.float32:
            return args[0]
        number = ir.IntType(32)
        bits = builder.bitcast(args[0], number)
        odd = builder.and_(builder.lshr(bits, ir.Constant(number, 16)), ir.Constant(number, 1))
        rounded = builder.add(bits, builder.add(odd, ir.Constant(number, 0x7FFF)))
        return builder.trunc(builder.lshr(rounded, ir.Constant(number, 16)), ir.IntType(16))

    if x == types.float32 and isinstance(out, types.Array):
        return out.dtype(x, out), make
    return None


@intrinsic
def power_of_two(context, n):
    """Return 2 ** n for an int32 n from -126 to 127."""

    def make(lower, builder, signature, args):
        number = ir.IntType(32)
        biased = builder.add(args[0], ir.Constant(number, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(number, 23)), ir.FloatType())

    return types.float32(types.int32), make


@njit(inline="always", **JIT)
def exp(x):
    """Return e ** x in float32, within two units of its last place."""
    x = min(max(x, FLOOR), CEIL)
    n = np.floor(x * LOG2E + HALF)
    r = x - n * LN2_HIGH - n * LN2_LOW
    p = ((((P0 * r + P1) * r + P2) * r + P3) * r + P4) * r + P5
    return (p * r * r + r + ONE) * power_of_two(np.int32(n))


@njit(**JIT)
def add_norm(x, delta, after, weight, eps, one, out):
    """x += delta, out = RMSNorm(x); both (R, D).

    delta may have no rows; if `after` (D,) is not empty, delta is normalised by it first. A norm's
    factor is `one` + weight.
    """
    rows, width = x.shape
    size = np.float32(width)
    for row in range(rows):
        if len(delta):
            if len(after):
                total = ZERO
                for i in range(width):
                    total += wide(delta[row, i]) * wide(delta[row, i])
                scale = ONE / np.sqrt(total / size + eps)
                for i in range(width):
                    x[row, i] += wide(delta[row, i]) * scale * (one + wide(after[i]))
            else:
                for i in range(width):
                    x[row, i] += wide(delta[row, i])
        total = ZERO
        for i in range(width):
            total += x[row, i] * x[row, i]
        scale = ONE / np.sqrt(total / size + eps)
        for i in range(width):
            out[row, i] = like(x[row, i] * scale * (one + wide(weight[i])), out)


@njit(**JIT)
def gate(gate_up, gelu, out):
    """out (R, I) = act(gate_up[:, :I]) * gate_up[:, I:]; act is GELU (tanh form) or SiLU."""
    rows, width = out.shape
    for row in range(rows):
        left, right = gate_up[row, :width], gate_up[row, width:]
        if gelu:
            for i in range(width):
                a = wide(left[i])
                activated = a / (ONE + exp(-GELU * (a + CUBE * a * a * a)))
                out[row, i] = like(activated * wide(right[i]), out)
        else:
            for i in range(width):
                a = wide(left[i])
                out[row, i] = like(a / (ONE + exp(-a)) * wide(right[i]), out)


@njit(**JIT)
def rotate(qkv, q_norm, k_norm, eps, one, cos, sin, past, q, keys, values):
    """Rotate queries and keys of qkv (B, T, (H + 2 KV) D); write keys and values from `past` on.

    q is (B, T, H, D); keys and values are (B, KV, room, D). cos and sin (positions, R / 2) rotate
    the first R numbers of a head. q_norm and k_norm (D,) may be empty.
    """
    batch, tokens, heads, size = q.shape
    kv_heads, half = keys.shape[1], cos.shape[1]
    head = np.empty(size, np.float32)
    for b in range(batch):
        for t in range(tokens):
            row, at = qkv[b, t], past + t
            for h in range(heads + kv_heads):
                source = row[h * size : (h + 1) * size]
                for i in range(size):
                    head[i] = wide(source[i])
                weight = q_norm if h < heads else k_norm
                if len(weight):
                    total = ZERO
                    for i in range(size):
                        total += head[i] * head[i]
                    scale = ONE / np.sqrt(total / np.float32(size) + eps)
                    for i in range(size):
                        head[i] *= scale * (one + wide(weight[i]))
                for i in range(half):
                    a, c = head[i], head[half + i]
                    head[i] = a * cos[at, i] - c * sin[at, i]
                    head[half + i] = c * cos[at, i] + a * sin[at, i]
                if h < heads:
                    rotated = q[b, t, h]
                    for i in range(size):
                        rotated[i] = like(head[i], q)
                else:
                    key = keys[b, h - heads, at]
                    for i in range(size):
                        key[i] = like(head[i], keys)
            for h in range(kv_heads):
                first = (heads + kv_heads + h) * size
                value = values[b, h, at]
                for i in range(size):
                    value[i] = like(wide(row[first + i]), values)


@njit(**JIT)
def attend_heads(q, keys, values, b, g, first, last, shared, scale, cap, out):
    """Attention of row b's queries q (B, H, D) that share key head g, written to out (B, H D).

    Positions are first .. last - 1; keys and values are (B, KV, room, D). A `cap` other than 0
    bounds the scores. Keys and values are widened once for all heads that read them. Positions
    below `shared` are equal in all rows and read from row 0, whose keys are still in a cache.
    """
    size, heads, count = q.shape[2], q.shape[1] // keys.shape[1], last - first
    scores = np.empty((heads, count), np.float32)
    query, wider = np.empty(size, np.float32), np.empty((BLOCK, size), np.float32)
    result = out[b, g * heads * size : (g + 1) * heads * size]
    for begin in range(0, count, BLOCK):
        length = min(BLOCK, count - begin)
        for t in range(length):
            place = first + begin + t
            key, widened = keys[0 if place < shared else b, g, place], wider[t]
            for i in range(size):
                widened[i] = wide(key[i])
        for h in range(heads):
            source, line = q[b, g * heads + h], scores[h]
            for i in range(size):
                query[i] = wide(source[i]) * scale
            for t in range(length):
                total, widened = ZERO, wider[t]
                for i in range(size):
                    total += query[i] * widened[i]
                line[begin + t] = total
    for h in range(heads):
        softmax(scores[h], cap)
    mixed = np.zeros((heads, size), np.float32)
    for begin in range(0, count, BLOCK):
        length = min(BLOCK, count - begin)
        for t in range(length):
            place = first + begin + t
            value, widened = values[0 if place < shared else b, g, place], wider[t]
            for i in range(size):
                widened[i] = wide(value[i])
        for h in range(heads):
            line, head = scores[h], mixed[h]
            t = 0
            while t + 4 <= length:
                s0, s1 = line[begin + t], line[begin + t + 1]
                s2, s3 = line[begin + t + 2], line[begin + t + 3]
                v0, v1, v2, v3 = wider[t], wider[t + 1], wider[t + 2], wider[t + 3]
                for i in range(size):
                    head[i] += s0 * v0[i] + s1 * v1[i] + s2 * v2[i] + s3 * v3[i]
                t += 4
            while t < length:
                s0, v0 = line[begin + t], wider[t]
                for i in range(size):
                    head[i] += s0 * v0[i]
                t += 1
    for h in range(heads):
        for i in range(size):
            result[h * size + i] = like(mixed[h, i], out)


@njit(**JIT)
def softmax(line, cap):
    """Replace scores (T,), bounded by `cap` if it is not 0, by their softmax."""
    top, total = LOWEST, ZERO
    if cap != ZERO:
        for t in range(len(line)):
            power = exp(line[t] / cap * np.float32(2))
            line[t] = cap * (power - ONE) / (power + ONE)
    for t in range(len(line)):
        top = max(top, line[t])
    for t in range(len(line)):
        line[t] = exp(line[t] - top)
        total += line[t]
    share = ONE / total
    for t in range(len(line)):
        line[t] *= share


@njit(**JIT)
def attend(q, keys, values, first, last, scale, cap, out):
    """out (B, H D) = attention of one query per row (B, H, D) over positions first .. last - 1."""
    for b in range(q.shape[0]):
        for g in range(keys.shape[1]):
            attend_heads(q, keys, values, b, g, first, last, 0, scale, cap, out)


class Kernels:
    """The compiled form of `llama_layers.Operators`, with the same arguments and results."""

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
