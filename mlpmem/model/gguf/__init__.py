"""GGUF files: a decoder's weights, tokenizer and chat template in one file.

    reader      a file's header and its tensors, checked before they are read
    blocks      the kinds of quantised block
    vocabulary  its tokenizer
    configs     each family's config
    assemble    a decoder and its tokenizer out of a file

It may import `fast` and what lies below. Open reader.py first.
"""
