"""The two networks and what they read: decoder, memory, tokenizer, prompts, LoRA.

A family of decoders is a row of families.py. Decoder and memory are read from folders; whoever has
a hub id fetches it before.
It may import `fast` and what lies below. Open decoder.py first, then memory.py.
"""
