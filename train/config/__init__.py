"""Recipes: a TOML file becomes frozen dataclasses, one per table, each value checked.

tables has the dataclasses, studies one more of them, load reads a file, checks has ranges.

It may import `train.files` and `mlpmem.errors`, and one number of `mlpmem.retrieval`.
Open tables.py first.
"""
