"""Decoding made fast; delete this room, and answers stay the same but come more slowly.

Here live weights stored packed (packed), in 8 bits (linear) or in 4 for a few rows (few_rows),
passes written by hand for GPT-2 (gpt2_pass) and for Llama's shape (llama_pass, with llama_kernels),
a whole step in one compiled call (step, with step_kernels), attention with its cache (attention),
and devices, threads and memory (devices). numba compiles where it is installed.
It may import `mlpmem.formats` and `mlpmem.errors`. Open linear.py first.
"""
