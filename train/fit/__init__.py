"""The training loop of decoder and memory: loop runs it, loss and optimizer make a step.

packing makes rows of passages, memory_start a new memory. checkpoint saves and restores a run,
validation measures rows held out of training, workers trains one model in several processes.
context_rows and kept_rows are what a memory of chats reads besides a datastore's rows.

It may import `run` and what lies below, and nothing of `measure`. Open loop.py first.
"""
