"""What systems answer, measured: the atlas's test, perplexity of a text, sources token by token.

findings is the schema of a number with its interval; questions are documents, batches of prompts.
It may import `run` and what lies below, and nothing of `fit`.
Open findings.py first, then atlas.py.
"""
