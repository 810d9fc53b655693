"""The training loop of decoder and memory: loop runs it, loss and optimizer make a step.

packing makes rows of passages, memory_start a new memory, validation measures rows that no step
sees, workers shares a model among processes.

It may import `run` and what lies below, and nothing of `measure`. Open loop.py first.
"""
