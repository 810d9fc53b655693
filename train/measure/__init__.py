"""Measurements: the atlas's test, perplexity of a text, and sources token by token.

findings is the schema of a number with its interval. questions turns test questions into documents,
batches scores and generates for many prompts at once.

It may import `run` and what lies below, and nothing of `fit`.
Open findings.py first, then atlas.py.
"""
