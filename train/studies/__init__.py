"""Answers to the paper's reviewers, one file per question: `python -m train.studies NAME RECIPE`.

A study is a function of a Run (run) that yields findings, and a row in the registry. teach trains a
memory or a decoder on new documents.
It may import `stages` and the rooms below it, but not `tasks`. Open registry.py first.
"""
