"""Folders for Hugging Face Spaces: the page on a CPU, on ZeroGPU, and as static files.

build writes a folder, lease runs a model on a leased GPU, zero_app is the app of a ZeroGPU Space.
It may import every room of `mlpmem` but `hf` and `bench`. Open build.py first.
"""
