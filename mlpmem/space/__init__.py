"""Folders that Hugging Face Spaces serve: the page on a CPU, on ZeroGPU, and as files alone.

build writes them, lease holds a GPU for a column, zero_app is the app of a ZeroGPU Space.
It may import every room of `mlpmem` but `hf` and `bench`. Open build.py first.
"""
