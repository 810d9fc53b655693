"""The corpus that ships: real facts and invented ones, in wordings that serve one purpose each.

facts and entities say what is true, wordings how it is said, passages makes the text of them,
strangers adds one-off names and odd words.
It may import `config` and `files`, and no other corpus. Open passages.py first.
"""
