"""From text to documents and tokens: any text (text), and the shipped atlas (atlas/).

readers streams files and the Hub, tokenizer trains a byte-level BPE, writer streams to disk. chat
encodes turns in a decoder's template, source opens an existing decoder.

It may import `config` and `files`. Open text.py first, or atlas/passages.py.
"""
