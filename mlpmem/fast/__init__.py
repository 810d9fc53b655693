"""Fast decoding; without this room, answers are the same but slower.

Weights are packed (packed), in 8 bits (linear), or in 4 bits for a few rows (few_rows). There are
hand-written passes for GPT-2 (gpt2_pass) and Llama-shaped decoders (llama_pass, llama_layers). A
complete step, with a memory's if there is one, is one compiled call (step, phases, parts,
kernels/). Other families use compiled products of 4 bits (small_products). attention has the cache,
devices sets threads and memory, sharing counts runs. Compiled code needs numba (compiling).
It may import `mlpmem.formats` and `mlpmem.errors`. Open linear.py first.
"""
