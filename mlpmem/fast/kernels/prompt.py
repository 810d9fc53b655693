"""Causal attention of a prompt's tokens, compiled by numba: a few tokens of a key head at a time.

Their scores are kept until all positions are read, so a softmax is computed once. Keys and values
are widened to float32 once for all heads and tokens that read them.
"""

import numpy as np

from mlpmem.fast.kernels import compiled
from mlpmem.fast.kernels.attend import BLOCK, padded, score, soften, weigh, weigh_pair, widen
from mlpmem.fast.kernels.intrinsics import LANES
from mlpmem.fast.kernels.layer import ONE, wide

TOKENS = 16  # computed together


@compiled
def attend_tokens(q, keys, values, g, tokens, past, window, scale, cap, out):
    """out (T, H, D) = attention of queries q (T, H, D) of key head g, for tokens (first, last).

    keys and values are (KV, room, D); token t sees positions past + t - window + 1 .. past + t, all
    up to that without a window. A `cap` other than 0 bounds the scores.
    """
    heads, size, (first, last) = q.shape[1] // len(keys), q.shape[2], tokens
    width, end = padded(size), past + last
    begin = max(0, past + first + 1 - window) if window else 0
    queries = np.zeros((last - first, heads, width), np.float32)
    for t in range(last - first):
        for h in range(heads):
            for i in range(size):
                queries[t, h, i] = wide(q[first + t, g * heads + h, i]) * scale
    scores = np.empty((last - first, heads, end - begin + LANES), np.float32)
    wider = np.zeros((BLOCK, width), np.float32)
    for start in range(begin, end, BLOCK):
        length = min(BLOCK, end - start)
        widen(keys[g], start, length, wider)
        score_block(queries, wider, start, (begin, past + first, length), scores)
    sums = np.zeros((last - first, heads, width), np.float32)
    totals = np.empty((last - first, heads), np.float32)
    for t in range(last - first):
        low = max(0, past + first + t + 1 - window) if window else 0
        for h in range(heads):
            line = scores[t, h, low - begin : past + first + t + 1 - begin]
            totals[t, h] = soften(line, cap)[1]
    for start in range(begin, end, BLOCK):
        length = min(BLOCK, end - start)
        widen(values[g], start, length, wider)
        weigh_block(scores, wider, start, (begin, past + first, length, window), sums)
    for t in range(last - first):
        for h in range(heads):
            share = ONE / totals[t, h]
            for i in range(size):
                out[first + t, g * heads + h, i] = sums[t, h, i] * share


@compiled
def score_block(queries, wider, start, place, scores):
    """Write the scores of queries (T, heads, width) with the keys of a block from `start` on.

    place is (the scores' first position, that of the first token, the block's length).
    """
    (tokens, heads, width), (begin, first, length) = queries.shape, place
    for t in range(tokens):
        seen = min(length, first + t + 1 - start)
        for h in range(heads):
            query = queries[t, h].ctypes.data
            line = scores[t, h].ctypes.data + 4 * (start - begin)
            for i in range(0, seen, LANES):
                score(wider.ctypes.data + 4 * i * width, query, line + 4 * i, width)


@compiled
def weigh_block(scores, wider, start, place, sums):
    """Add a block's values from `start` on, times their shares, to sums (T, heads, width).

    place is (the scores' first position, that of the first token, the block's length, window).
    """
    (tokens, heads, width), (begin, first, length, window) = sums.shape, place
    for t in range(tokens):
        low = max(start, first + t + 1 - window) if window else start
        count = min(start + length, first + t + 1) - low
        if count <= 0:
            continue
        rows = wider.ctypes.data + 4 * (low - start) * width
        for h in range(0, heads, 2):
            shares = scores[t, h].ctypes.data + 4 * (low - begin)
            out = sums[t, h].ctypes.data
            if h + 1 == heads:
                weigh(shares, rows, count, out, width)
            else:
                others, another = shares + 4 * scores.shape[2], out + 4 * width
                weigh_pair(shares, others, rows, count, out, another, width)
