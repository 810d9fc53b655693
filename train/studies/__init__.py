"""Answers to the paper's reviewers, one file per question: `python -m train.studies NAME RECIPE`.

A study is a function of a Run (run) that yields findings, and a row in the registry. imitation,
worse, mixing, routing, frozen and chats measure a finished run; ledger and answer_cost have its
costs.
Studies that train models are in the room `training`.
It may import `stages` and the rooms below it, but not `tasks`. Open registry.py first.
"""
