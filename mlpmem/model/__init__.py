"""The two networks and their files: decoder, memory, tokenizer, prompts, LoRA, GGUF files.

A family of decoders is a row of families.py. Decoder and memory are read from local folders, or a
decoder from a GGUF file (gguf/); loading/hub.py downloads Hub ids. memory_layers has what a memory
is built of, context what it may read of the words so far.
It may import `fast` and what lies below. Open decoder.py first, then memory.py.
"""
