"""Folders that Hugging Face Spaces serve: the page on a CPU, on ZeroGPU, and as files alone."""
