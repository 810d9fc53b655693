"""A decoding step of a Llama in one compiled call, on one or more threads, without the GIL.

A step is of one token per sequence, or of a prompt's next tokens. A memory may be computed in the
same call, for each sequence's last tokens; if it has the decoder's head, that is read once for
both. Heads give logits of the last tokens, or scores: log-probs of the tokens that follow.

A step is a sequence of phases, each a product or an attention.
A phase is cut into chunks; each thread takes the next one, so a delayed thread delays one chunk at
most. The leading thread computes what lies between phases.
"""

import numpy as np
from numba import carray

from mlpmem.fast.kernels import compiled
from mlpmem.fast.kernels.attend import attend_piece, merge
from mlpmem.fast.kernels.intrinsics import add, pointer, read, swap, write
from mlpmem.fast.kernels.layer import ZERO, add_norm, gate, rotate
from mlpmem.fast.kernels.products import some_outputs, sum_groups
from mlpmem.fast.kernels.prompt import TOKENS, attend_tokens
from mlpmem.fast.kernels.scores import score_chunk, transpose

# kinds of phase: queries, keys and values; attention; its output; gate and up; down; the last norm
QKV, ATTEND, OUT, GATE_UP, DOWN, TOP = range(6)
# a memory's door, and the same of its blocks
RECALL_DOOR, RECALL_GATE_UP, RECALL_DOWN, RECALL_TOP = range(6, 10)
HEAD, OWN_HEAD, RECALL_HEAD = range(10, 13)  # of all rows, the decoder's, the memory's
SCORE, OWN_SCORE, RECALL_SCORE = range(13, 16)  # the same heads, for the tokens that follow
SHIFT = 32  # of the phase's number in the word that threads share
WAIT, END = 2**29, 2**30  # phase numbers before the first phase and after the last


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
    (h, q, qkv, pieces, attended, gate_up, activated, delta, sums), recall, tops, ends = room[:4]
    kind, layer = plan[3][phase, 0], plan[3][phase, 1]
    (batch, tokens, _, size), width, names, inputs = q.shape, x.shape[1], norms[layer], h
    one, eps = factors[0], factors[1]
    if kind == QKV or kind == TOP:
        after = vector(norms[max(0, layer - 1), 3] if layer else 0, width)
        added = delta if phase else delta[:0]
        add_norm(x, added, after, vector(names[0], width), eps, one, h)
        if kind == TOP:
            keep_last(h, batch, tops[1])
    elif kind == ATTEND:
        half = tables[layer, 2]
        cos = carray(pointer(tables[layer, 0]), (past + tokens, half), np.float32)
        sin = carray(pointer(tables[layer, 1]), (past + tokens, half), np.float32)
        keys, values = cached(caches, layer, batch, size, sample)
        rotate(
            qkv.reshape(batch, tokens, qkv.shape[1]), vector(names[4], size),
            vector(names[5], size), factors[2], one, cos, sin, past, q, keys, values,
        )  # fmt: skip
    elif kind == OUT:
        if tokens == 1:
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
    elif kind == RECALL_DOOR:
        inputs = recall[3]
        keep_last(hidden, batch, inputs)
        standardise(inputs, names[0], names[1])
        recall[0][:] = ZERO
    elif kind == RECALL_GATE_UP or kind == RECALL_TOP:
        y, first = recall[0], layer == len(windows) + 1
        if first:
            keep_last(hidden, batch, y)
        added = recall[5][:0] if first else recall[5]
        inputs = recall[4] if kind == RECALL_GATE_UP else tops[2]
        add_norm(y, added, vector(0, width), vector(names[0], width), factors[3], ZERO, inputs)
    elif kind == RECALL_DOWN:
        gate(recall[1], False, recall[2])
        inputs = recall[2]
    elif kind >= SCORE:
        inputs = tops[kind - SCORE]
        transpose(inputs, room[5][1])
    else:
        keep_last(tops[1], batch, ends[1])
        keep_last(tops[2], batch, ends[2])
        inputs = ends[kind - HEAD]
    if kind != ATTEND:
        sum_groups(inputs, sums)


@compiled
def standardise(x, mean, scale):
    """x (R, K) = (x - mean) / scale, both by address."""
    rows, width = x.shape
    means, scales = vector(mean, width), vector(scale, width)
    for row in range(rows):
        for i in range(width):
            x[row, i] = (x[row, i] - means[i]) / scales[i]


@compiled
def keep_last(rows, batch, out):
    """Copy the last tokens of each sequence, rows (B T, D), to out (B keep, D or more)."""
    (count, width), keep = rows.shape, len(out) // batch
    for b in range(batch):
        for t in range(keep):
            out[b * keep + t, :width] = rows[(b + 1) * (count // batch) - keep + t]


@compiled
def attend_chunk(layer, begin, end, model, arrays, past, shared, sample):
    """Compute parts begin .. end - 1 of the attention.

    Of one token per sequence, a part of P x KV is a span of positions of a key head. Of more, a
    part of B x KV x P is some tokens of a sequence.
    """
    caches, windows, scores = model[0], model[1], model[2]
    queries, pieces, attended = arrays[1], arrays[3], arrays[4]
    batch, tokens, heads, size = queries.shape
    window = windows[layer]
    keys, values = cached(caches, layer, batch, size, sample)
    if tokens > 1:
        out = attended.reshape(batch, tokens, heads, size)
        parts = -(-tokens // TOKENS)
        for i in range(begin, end):
            b, g, t = i // parts // keys.shape[1], i // parts % keys.shape[1], i % parts * TOKENS
            attend_tokens(
                queries[b], keys[b], values[b], g, (t, min(tokens, t + TOKENS)), past, window,
                scores[layer, 0], scores[layer, 1], out[b],
            )  # fmt: skip
        return
    q = queries.reshape(batch, heads, size)
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
def multiply_chunk(kind, part, begin, end, layer):
    """Compute a chunk of a layer's product, with the layer's arrays."""
    h, q, qkv, pieces, attended, gate_up, activated, delta, sums = layer
    inputs, out = h, qkv
    if kind == OUT:
        inputs, out = attended, delta
    elif kind == GATE_UP:
        out = gate_up
    elif kind == DOWN:
        inputs, out = activated, delta
    some_outputs(part, begin, end, inputs, sums, out)


@compiled
def recall_chunk(kind, part, begin, end, block, sums):
    """Compute a chunk of a product of a memory's door or block, with its arrays."""
    y, gate_up, activated, entered, inputs, out = block
    if kind == RECALL_DOOR:
        inputs = entered
    elif kind == RECALL_GATE_UP:
        out = gate_up
    elif kind == RECALL_DOWN:
        inputs = activated
    some_outputs(part, begin, end, inputs, sums, out)


@compiled
def score_part(kind, part, begin, end, chunk, tops, scores, sums):
    """Compute a chunk of a phase that scores tokens."""
    tokens, columns, totals, found = scores
    row = len(tops[1]) if kind == RECALL_SCORE else 0  # the first
    inputs = tops[kind - SCORE], columns, sums
    score_chunk(part, begin, end, *inputs, tokens[row:], totals[chunk, row:], found[row:])


@compiled
def step(leads, word, done, plan, model, room, x, hidden, past, shared, sample):
    """Decode T tokens of B sequences: x (B T, D) are their embeddings.

    Writes hidden (B T, D) and the logits of each sequence's last tokens, (B keep, V).

    One thread leads: it computes what lies before a phase and opens it. All threads take chunks;
    the leader waits until the last chunk is done. word holds the open phase and its next chunk;
    done counts each phase's finished chunks.

    The first `shared` of the `past` tokens are equal in all sequences.

    plan is (first, chunks, parts, kinds): where each phase's chunks begin, (part, begin, end) of
    each chunk, the parts of `some_outputs`, and (kind, layer) of each phase.

    model is (caches, windows, scores, norms, tables, factors, gelu, depth). caches (layers, 4):
    addresses of keys and values, room, KV. norms (layers + 1, 6): addresses of the norms before and
    after attention, before and after the FFN, of queries and of keys; then, the mean and scale of a
    memory's door, the norms of its blocks, and its last. tables (layers, 3): addresses of cos and
    sin, and their width. factors: added to norm weights, epsilon, epsilon of heads, epsilon of a
    memory.

    room is (the arrays of a layer, those of a memory's blocks, what may be scored, the heads'
    inputs, the logits, the scores). Of the third to the fifth, there is one for all rows, one of
    the decoder's rows, one of the memory's. The scores are (tokens, columns, totals,
    found), see `score_chunk`, with totals per chunk.
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
            kind, (index, begin, end) = plan[3][on, 0], plan[1][first[on] + chunk]
            part, sums = plan[2][index], room[0][8]
            # each gets the arrays that it needs: frames of more would take long to make
            if kind == ATTEND:
                attend_chunk(plan[3][on, 1], begin, end, model, room[0], past, shared, sample)
            elif kind < RECALL_DOOR:
                multiply_chunk(kind, part, begin, end, room[0])
            elif kind < HEAD:
                recall_chunk(kind, part, begin, end, room[1], sums)
            elif kind < SCORE:
                some_outputs(part, begin, end, room[3][kind - HEAD], sums, room[4][kind - HEAD])
            else:
                score_part(kind, part, begin, end, chunk, room[2], room[5], sums)
            add(done, on, 1)
        if leads:
            while read(done, phase) < first[phase + 1] - first[phase]:
                pass
            phase += 1
        elif on == END:
            return
