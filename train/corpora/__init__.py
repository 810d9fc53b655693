"""From text to documents and tokens: any text (text), and the atlas that ships (atlas/).

readers streams files and the Hub, tokenizer trains a byte-level BPE, writer writes as it comes.

It may import `config` and `files`. Open text.py first, or atlas/passages.py.
"""
