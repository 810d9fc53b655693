"""A decoding step of a Llama in one compiled call, on one or more threads, without the GIL.

A memory may be computed in the same call; if it has the decoder's head, that is read once for both.

Weights are given by address: float32, float16 or 8 bits row by row, or 4 bits in lanes
(`few_rows.py`). Inputs and sums are always float32. A step is a sequence of phases, each a product
or an attention.
A phase is cut into chunks; each thread takes the next one, so a delayed thread delays one chunk at
most. The leading thread computes what lies between phases.
"""

import numpy as np
from numba import carray

from mlpmem.fast.kernels import compiled
from mlpmem.fast.kernels.attend import attend_piece, merge
from mlpmem.fast.kernels.intrinsics import (
    GROUP,
    LANES,
    LINE,
    TILE,
    add,
    float_1,
    floats_1,
    floats_2,
    floats_3,
    floats_4,
    half_1,
    halves_1,
    halves_2,
    halves_3,
    halves_4,
    int_1,
    ints_1,
    ints_2,
    ints_3,
    ints_4,
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
from mlpmem.fast.kernels.layer import ZERO, add_norm, gate, rotate

FLOAT32, INT8, INT4, FLOAT16 = 0, 1, 2, 3  # kinds of part
# kinds of phase: queries, keys and values; attention; its output; gate and up; down; the last norm
QKV, ATTEND, OUT, GATE_UP, DOWN, TOP = range(6)
RECALL_GATE_UP, RECALL_DOWN, RECALL_TOP = range(6, 9)  # the same of a memory
HEAD, OWN_HEAD, RECALL_HEAD = range(9, 12)  # of all rows, the decoder's, the memory's
SHIFT = 32  # of the phase's number in the word that threads share
WAIT, END = 2**29, 2**30  # phase numbers before the first phase and after the last


@compiled(inline="always")
def tile_product(kind, weight, scale, rows, x, out, width, stride):
    """TILE outputs of a weight in rows, for at most TILE rows of x; all by address."""
    if kind == INT8:
        if rows == 1:
            ints_1(weight, scale, x, out, width, stride)
        elif rows == 2:
            ints_2(weight, scale, x, out, width, stride)
        elif rows == 3:
            ints_3(weight, scale, x, out, width, stride)
        else:
            ints_4(weight, scale, x, out, width, stride)
    elif kind == FLOAT16:
        if rows == 1:
            halves_1(weight, scale, x, out, width, stride)
        elif rows == 2:
            halves_2(weight, scale, x, out, width, stride)
        elif rows == 3:
            halves_3(weight, scale, x, out, width, stride)
        else:
            halves_4(weight, scale, x, out, width, stride)
    elif rows == 1:
        floats_1(weight, scale, x, out, width, stride)
    elif rows == 2:
        floats_2(weight, scale, x, out, width, stride)
    elif rows == 3:
        floats_3(weight, scale, x, out, width, stride)
    else:
        floats_4(weight, scale, x, out, width, stride)


@compiled
def rows_product(kind, weight, scale, begin, end, rows, x, out, width, stride):
    """Outputs begin .. end - 1 of a weight in rows; all arrays by address, out's first output 0."""
    size = width * (1 if kind == INT8 else 2 if kind == FLOAT16 else 4)
    whole = begin + (end - begin) // TILE * TILE
    for i in range(begin, whole, TILE):
        here, ahead = weight + i * size, weight + (i + 2 * TILE) * size
        for line in range(0, TILE * size, LINE):
            prefetch(ahead + line)
        for r in range(0, rows, TILE):
            inputs, outputs = x + 4 * r * width, out + 4 * (r * stride + i)
            count = min(TILE, rows - r)
            tile_product(kind, here, scale + 4 * i, count, inputs, outputs, width, stride)
    for i in range(whole, end):
        for r in range(rows):
            here, inputs = weight + i * size, x + 4 * r * width
            outputs = out + 4 * (r * stride + i)
            if kind == INT8:
                int_1(here, scale + 4 * i, inputs, outputs, width, stride)
            elif kind == FLOAT16:
                half_1(here, 0, inputs, outputs, width, stride)
            else:
                float_1(here, 0, inputs, outputs, width, stride)


@compiled(inline="always")
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


@compiled
def some_outputs(part, begin, end, x, sums, out):
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
    else:
        rows_product(
            kind, weight, scale, begin, end, rows, x.ctypes.data, out.ctypes.data + 4 * column,
            width, out.shape[1],
        )  # fmt: skip
    if bias:
        biases = carray(pointer(bias), (end,), np.float32)
        for r in range(rows):
            for i in range(begin, end):
                out[r, column + i] += biases[i]


@compiled
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


@compiled
def vector(address, size):
    """Return float32 numbers at an address; an empty array for address 0."""
    return carray(pointer(address), (size if address else 0,), np.float32)


@compiled(inline="always")
def cached(caches, layer, batch, size, sample):
    """Return the buffers of a layer's keys and values (B, KV, room, size)."""
    shape = batch, caches[layer, 3], caches[layer, 2], size
    keys = carray(pointer(caches[layer, 0]), shape, sample.dtype)
    return keys, carray(pointer(caches[layer, 1]), shape, sample.dtype)


@compiled
def open_phase(phase, plan, model, room, x, hidden, past, sample):
    """Compute what lies before a phase; the arguments are those of `step`."""
    caches, windows, scores, norms, tables, factors, gelu, depth = model
    (h, q, qkv, pieces, attended, gate_up, activated, delta, sums), recall, tops, logits = room
    kind, layer = plan[3][phase, 0], plan[3][phase, 1]
    (batch, width), size, names, inputs = x.shape, q.shape[2], norms[layer], h
    one, eps = factors[0], factors[1]
    if kind == QKV or kind == TOP:
        after = vector(norms[max(0, layer - 1), 3] if layer else 0, width)
        added, out = delta if phase else delta[:0], h if kind == QKV else tops[1]
        add_norm(x, added, after, vector(names[0], width), eps, one, out)
    elif kind == ATTEND:
        half = tables[layer, 2]
        cos = carray(pointer(tables[layer, 0]), (past + 1, half), np.float32)
        sin = carray(pointer(tables[layer, 1]), (past + 1, half), np.float32)
        keys, values = cached(caches, layer, batch, size, sample)
        rotate(
            qkv.reshape(batch, 1, qkv.shape[1]), vector(names[4], size), vector(names[5], size),
            factors[2], one, cos, sin, past, q.reshape(batch, 1, q.shape[1], size), keys, values,
        )  # fmt: skip
    elif kind == OUT:
        merge(pieces, size, attended)
        inputs = attended
    elif kind == GATE_UP:
        after, weight = vector(names[1], width), vector(names[2], width)
        add_norm(x, delta, after, weight, eps, one, h)
        if layer == depth:
            hidden[:] = h
    elif kind == DOWN:
        gate(gate_up, gelu, activated)
        inputs = activated
    elif kind == RECALL_GATE_UP or kind == RECALL_TOP:
        y, first = recall[0], layer == len(windows) + 1
        if first:
            y[:] = hidden
        added, out = delta[:0] if first else delta, h if kind == RECALL_GATE_UP else tops[2]
        add_norm(y, added, vector(0, width), vector(names[0], width), factors[3], ZERO, out)
    elif kind == RECALL_DOWN:
        gate(recall[1], False, recall[2])
        inputs = recall[2]
    else:
        inputs = tops[kind - HEAD]
    if kind != ATTEND:
        sum_groups(inputs, sums)


@compiled
def attend_chunk(layer, begin, end, model, q, pieces, past, shared, sample):
    """Compute the pieces begin .. end - 1 of P x KV: a span of positions of a key head."""
    caches, windows, scores = model[0], model[1], model[2]
    window = windows[layer]
    keys, values = cached(caches, layer, len(q), q.shape[2], sample)
    first = max(0, past + 1 - window) if window else 0
    span = -(-(past + 1 - first) // len(pieces))
    for i in range(begin, end):
        p, g = i // keys.shape[1], i % keys.shape[1]
        start = min(past + 1, first + p * span)
        attend_piece(
            q, keys, values, g, start, min(past + 1, start + span), shared,
            scores[layer, 0], scores[layer, 1], pieces[p],
        )  # fmt: skip


@compiled
def compute_chunk(phase, chunk, plan, model, room, past, shared, sample):
    """Compute a chunk of a phase."""
    first, chunks, parts, kinds = plan
    (h, q, qkv, pieces, attended, gate_up, activated, delta, sums), recall, tops, logits = room
    kind, layer = kinds[phase, 0], kinds[phase, 1]
    part, begin, end = chunks[first[phase] + chunk]
    if kind == ATTEND:
        attend_chunk(layer, begin, end, model, q, pieces, past, shared, sample)
        return
    inputs, out = h, qkv
    if kind == OUT:
        inputs, out = attended, delta
    elif kind == GATE_UP:
        out = gate_up
    elif kind == DOWN:
        inputs, out = activated, delta
    elif kind == RECALL_GATE_UP:
        out = recall[1]
    elif kind == RECALL_DOWN:
        inputs, out = recall[2], delta
    elif kind >= HEAD:
        inputs, out = tops[kind - HEAD], logits[kind - HEAD]
    some_outputs(parts[part], begin, end, inputs, sums, out)


@compiled
def step(leads, word, done, plan, model, room, x, hidden, past, shared, sample):
    """Decode one token per row: x (B, D) are its embeddings; writes hidden (B, D) and the logits.

    One thread leads: it computes what lies before a phase and opens it. All threads take chunks;
    the leader waits until the last chunk is done. word holds the open phase and its next chunk;
    done counts each phase's finished chunks.

    The first `shared` of the `past` tokens are equal in all rows.

    plan is (first, chunks, parts, kinds): where each phase's chunks begin, (part, begin, end) of
    each chunk, the parts of `some_outputs`, and (kind, layer) of each phase.

    model is (caches, windows, scores, norms, tables, factors, gelu, depth). caches (layers, 4):
    addresses of keys and values, room, KV. norms (layers + 1, 6): addresses of the norms before and
    after attention, before and after the FFN, of queries and of keys; then, those of a memory's
    blocks and its last. tables (layers, 3): addresses of cos and sin, and their width. factors:
    added to norm weights, epsilon, epsilon of heads, epsilon of a memory.

    room is (the arrays of a layer, those of a memory's block, the heads' inputs, the logits). Of
    the last two, there is one for all rows, one of the decoder's rows, one of the memory's.
    """
    phases, phase, first = len(plan[0]) - 1, 0, plan[0]
    while True:
        if leads:
            if phase == phases:
                write(word, 0, END << SHIFT)
                return
            open_phase(phase, plan, model, room, x, hidden, past, sample)
            write(word, 0, phase << SHIFT)
        while True:
            current = read(word, 0)
            on, chunk = current >> SHIFT, current & (2**SHIFT - 1)
            if on >= phases or chunk >= first[on + 1] - first[on]:
                break
            if not swap(word, 0, current, current + 1):
                continue
            compute_chunk(on, chunk, plan, model, room, past, shared, sample)
            add(done, on, 1)
        if leads:
            while read(done, phase) < first[phase + 1] - first[phase]:
                pass
            phase += 1
        elif on == END:
            return
