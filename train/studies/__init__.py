"""What the paper's reviewers asked, each question a file: `python -m train.studies NAME RECIPE`.

A study is a function of a Run (run) that yields findings, and a row of the registry; teach gives a
memory or a decoder new documents.
It may import `stages` and what lies below, and nothing of `tasks`. Open registry.py first.
"""
