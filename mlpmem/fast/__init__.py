"""Decoding made fast; delete this room, and answers stay the same but come more slowly.

Here live weights stored packed or in int8 (linear), a GPT-2 pass written by hand (gpt2_pass),
attention with its cache (attention), and devices, threads and memory (devices).
It may import `mlpmem.formats` and `mlpmem.errors`. Open linear.py first.
"""
