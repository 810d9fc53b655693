"""A decoding step of a Llama in one compiled call, on one or more threads, without the GIL.

Weights are given by address: float32 or 8 bits row by row, or 4 bits in lanes (`few_rows.py`).
Inputs and sums are always float32. A step is a sequence of phases, each a product or an attention.
A phase is cut into chunks; each thread takes the next one, so a delayed thread delays one chunk at
most. The leading thread computes what lies between phases.
"""

import numpy as np
from numba import carray, njit

from mlpmem.fast.intrinsics import (
    GROUP,
    LANES,
    LINE,
    add,
    pointer,
    prefetch,
    product_1,
    product_2,
    product_3,
    product_4,
    product_8,
    read,
    swap,
    write,
)
from mlpmem.fast.llama_kernels import JIT, add_norm, attend_heads, gate, rotate

FLOAT32, INT8, INT4 = 0, 1, 2  # kinds of part
PHASES = 5  # of a layer: queries, keys and values; attention; its output; gate and up; down
SHIFT = 32  # of the phase's number in the word that threads share
WAIT, END = 2**29, 2**30  # phase numbers before the first phase and after the last
BYTES = np.zeros(0, np.int8)  # an array of the element type of 8-bit weights


@njit(inline="always", **JIT)
def rows_product(address, scale, begin, end, x, out, column, sample):
    """Outputs begin .. end - 1 of a weight row by row; scale is the scales' address, or 0."""
    width = x.shape[1]
    weight = carray(pointer(address), (end, width), sample.dtype)
    scales = carray(pointer(scale), (end,), np.float32)
    for r in range(x.shape[0]):
        row = x[r]
        i, size = begin, 4 * width * weight.itemsize
        while i + 4 <= end:
            ahead = address + (i + 8) * width * weight.itemsize
            for line in range(0, size, LINE):
                prefetch(ahead + line)
            w0, w1, w2, w3 = weight[i], weight[i + 1], weight[i + 2], weight[i + 3]
            t0, t1, t2, t3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for k in range(width):
                t0 += row[k] * np.float32(w0[k])
                t1 += row[k] * np.float32(w1[k])
                t2 += row[k] * np.float32(w2[k])
                t3 += row[k] * np.float32(w3[k])
            if scale:
                t0, t1 = t0 * scales[i], t1 * scales[i + 1]
                t2, t3 = t2 * scales[i + 2], t3 * scales[i + 3]
            out[r, column + i], out[r, column + i + 1] = t0, t1
            out[r, column + i + 2], out[r, column + i + 3] = t2, t3
            i += 4
        while i < end:
            w0, t0 = weight[i], np.float32(0)
            for k in range(width):
                t0 += row[k] * np.float32(w0[k])
            out[r, column + i] = t0 * scales[i] if scale else t0
            i += 1


@njit(inline="always", **JIT)
def lanes_product(weight, scale, rows, x, sums, out, groups, width, stride):
    """LANES outputs of a 4-bit weight for all rows, eight rows at a time; all by address."""
    left = rows
    while left > 4:  # a block's weights stay in the L1 cache
        if left < 8:  # fill the tile with earlier rows, which are computed twice
            back = min(8 - left, rows - left)
            if left + back < 8:
                break
            x, sums = x - 4 * back * width, sums - 4 * back * groups
            out, left = out - 4 * back * stride, 8
        product_8(weight, scale, x, sums, out, groups, width, stride)
        x, sums = x + 32 * width, sums + 32 * groups
        out, left = out + 32 * stride, left - 8
    if left > 4:  # five to seven rows in all
        product_4(weight, scale, x, sums, out, groups, width, stride)
        x, sums = x + 16 * width, sums + 16 * groups
        out, left = out + 16 * stride, left - 4
    if left == 1:
        product_1(weight, scale, x, sums, out, groups, width, stride)
    elif left == 2:
        product_2(weight, scale, x, sums, out, groups, width, stride)
    elif left == 3:
        product_3(weight, scale, x, sums, out, groups, width, stride)
    elif left == 4:
        product_4(weight, scale, x, sums, out, groups, width, stride)


@njit(**JIT)
def some_outputs(part, begin, end, x, sums, out, bytes_sample):
    """Outputs begin .. end - 1 of a part (kind, weight, scale, bias, outputs, column)."""
    kind, weight, scale, bias, column = part[0], part[1], part[2], part[3], part[5]
    rows, width = x.shape
    if kind == INT4:
        groups = width // GROUP
        for i in range(begin, end, LANES):
            block = i // LANES
            lanes_product(
                weight + block * groups * (GROUP * LANES // 2), scale + block * groups * 4 * LANES,
                rows, x.ctypes.data, sums.ctypes.data, out.ctypes.data + 4 * (column + i),
                groups, width, out.shape[1],
            )  # fmt: skip
    elif kind == INT8:
        rows_product(weight, scale, begin, end, x, out, column, bytes_sample)
    else:
        rows_product(weight, 0, begin, end, x, out, column, x)
    if bias:
        biases = carray(pointer(bias), (end,), np.float32)
        for r in range(rows):
            for i in range(begin, end):
                out[r, column + i] += biases[i]


@njit(**JIT)
def sum_groups(x, sums):
    """sums (R, K / GROUP), flat = the sum of each group of inputs x (R, K)."""
    rows, width = x.shape
    groups = width // GROUP
    for r in range(rows):
        for g in range(groups):
            total = np.float32(0)
            for i in range(GROUP):
                total += x[r, g * GROUP + i]
            sums[r * groups + g] = total


@njit(**JIT)
def vector(address, size):
    """Return float32 numbers at an address; an empty array for address 0."""
    return carray(pointer(address), (size if address else 0,), np.float32)


@njit(inline="always", **JIT)
def cached(caches, layer, batch, size, sample):
    """Return the buffers of a layer's keys and values (B, KV, room, size)."""
    shape = batch, caches[layer, 3], caches[layer, 2], size
    keys = carray(pointer(caches[layer, 0]), shape, sample.dtype)
    return keys, carray(pointer(caches[layer, 1]), shape, sample.dtype)


@njit(**JIT)
def open_phase(phase, model, room, x, hidden, past, sample):
    """Compute what lies before a phase; the arguments are those of `step`."""
    caches, windows, scores, norms, tables, factors, gelu, depth = model
    h, q, qkv, attended, gate_up, activated, delta, logits, sums = room
    layer, kind = phase // PHASES, phase % PHASES
    (batch, width), size, one, inputs = x.shape, q.shape[2], factors[0], h
    if kind == 0:  # also the head, after the last layer
        names, before = norms[layer], norms[max(0, layer - 1)]
        after = vector(before[3] if layer else 0, width)
        added = delta if layer else delta[:0]
        add_norm(x, added, after, vector(names[0], width), factors[1], one, h)
    elif kind == 1:
        half = tables[layer, 2]
        cos = carray(pointer(tables[layer, 0]), (past + 1, half), np.float32)
        sin = carray(pointer(tables[layer, 1]), (past + 1, half), np.float32)
        keys, values = cached(caches, layer, batch, size, sample)
        names = norms[layer]
        rotate(
            qkv.reshape(batch, 1, qkv.shape[1]), vector(names[4], size), vector(names[5], size),
            factors[2], one, cos, sin, past, q.reshape(batch, 1, q.shape[1], size), keys, values,
        )  # fmt: skip
    elif kind == 2:
        inputs = attended
    elif kind == 3:
        names = norms[layer]
        after, weight = vector(names[1], width), vector(names[2], width)
        add_norm(x, delta, after, weight, factors[1], one, h)
        if layer == depth:
            hidden[:] = h
    else:
        gate(gate_up, gelu, activated)
        inputs = activated
    if kind != 1:
        sum_groups(inputs, sums)


@njit(**JIT)
def attend_chunk(layer, begin, end, model, q, attended, past, shared, sample):
    """Attend with the key heads begin .. end - 1 of KV x B."""
    caches, windows, scores = model[0], model[1], model[2]
    window = windows[layer]
    keys, values = cached(caches, layer, len(q), q.shape[2], sample)
    first = max(0, past + 1 - window) if window else 0
    scale, cap = scores[layer, 0], scores[layer, 1]
    for i in range(begin, end):
        b, g = i % len(q), i // len(q)  # rows of one head follow one another
        attend_heads(q, keys, values, b, g, first, past + 1, shared, scale, cap, attended)


@njit(**JIT)
def step(leads, word, done, plan, model, room, x, hidden, past, shared, sample):
    """Decode one token per row: x (B, D) are its embeddings; writes hidden (B, D) and the logits.

    One thread leads: it computes what lies before a phase and opens it. All threads take chunks;
    the leader waits until the last chunk is done. word holds the open phase and its next chunk;
    done counts each phase's finished chunks.

    The first `shared` of the `past` tokens are equal in all rows.

    plan is (first, chunks, parts): where each phase's chunks begin, (part, begin, end) of each
    chunk, and the parts of `some_outputs`.

    model is (caches, windows, scores, norms, tables, factors, gelu, depth). caches (layers, 4):
    addresses of keys and values, room, KV. norms (layers + 1, 6): addresses of the norms before and
    after attention, before and after the FFN, of queries and of keys. tables (layers, 3): addresses
    of cos and sin, and their width. factors: added to norm weights, epsilon, epsilon of heads.

    room is (h, q, qkv, attended, gate_up, activated, delta, logits, sums).
    """
    first, chunks, parts = plan
    phases, phase = len(first) - 1, 0
    h, q, qkv, attended, gate_up, activated, delta, logits, sums = room
    while True:
        if leads:
            if phase == phases:
                write(word, 0, END << SHIFT)
                return
            open_phase(phase, model, room, x, hidden, past, sample)
            write(word, 0, phase << SHIFT)
        while True:
            current = read(word, 0)
            on, chunk = current >> SHIFT, current & (2**SHIFT - 1)
            if on >= phases or chunk >= first[on + 1] - first[on]:
                break
            if not swap(word, 0, current, current + 1):
                continue
            part, begin, end = chunks[first[on] + chunk]
            kind = on % PHASES
            if kind == 1:
                attend_chunk(on // PHASES, begin, end, model, q, attended, past, shared, sample)
            elif on == phases - 1:
                some_outputs(parts[part], begin, end, h, sums, logits, BYTES)
            elif kind == 0:
                some_outputs(parts[part], begin, end, h, sums, qkv, BYTES)
            elif kind == 2:
                some_outputs(parts[part], begin, end, attended, sums, delta, BYTES)
            elif kind == 3:
                some_outputs(parts[part], begin, end, h, sums, gate_up, BYTES)
            else:
                some_outputs(parts[part], begin, end, activated, sums, delta, BYTES)
            add(done, on, 1)
        if leads:
            while read(done, phase) < first[phase + 1] - first[phase]:
                pass
            phase += 1
        elif on == END:
            return
