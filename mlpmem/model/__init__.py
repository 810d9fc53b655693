"""The two networks and what they read: decoder, memory, tokenizer, prompts, LoRA, GGUF files.

A family of decoders is a row of families.py. Decoder and memory are read from folders, or a decoder
from a GGUF file (gguf, gguf_blocks, gguf_model); whoever has a Hub id fetches it before.
It may import `fast` and what lies below. Open decoder.py first, then memory.py.
"""
