"""What a Llama computes between two products, compiled by numba: one call each, without the GIL.

Rows are B x T positions. Numbers are float32 or the bits of bfloat16 (int16); sums are float32.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mlpmem.fast.kernels import compiled

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


@compiled(inline="always")
def exp(x):
    """Return e ** x in float32, within two units of its last place."""
    x = min(max(x, FLOOR), CEIL)
    n = np.floor(x * LOG2E + HALF)
    r = x - n * LN2_HIGH - n * LN2_LOW
    p = ((((P0 * r + P1) * r + P2) * r + P3) * r + P4) * r + P5
    return (p * r * r + r + ONE) * power_of_two(np.int32(n))


@compiled
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


@compiled
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


@compiled
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
