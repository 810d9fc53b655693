"""Folders for Hugging Face Spaces: the page on a CPU, on ZeroGPU, and as static files.

build writes a folder, live lists what a static Space's page loads, general computes what a gate is
fitted to, named reads a decoder that a bundle only names, turns reads a chat template, lease runs a
model on a leased GPU, and zero_app is the app of a ZeroGPU Space.
It may import every room of `mlpmem` but `hf` and `bench`. Open build.py first.
"""
