"""Recipes: a TOML file becomes frozen dataclasses, one per table, with every value checked.

tables, corpus and studies have the dataclasses, load reads a file, checks holds choices and ranges.

It may import `train.files` and `mlpmem.errors`, and one function of `mlpmem.retrieval`.
Open tables.py first.
"""
