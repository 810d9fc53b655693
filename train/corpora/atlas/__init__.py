"""The shipped corpus: real and invented facts, in wordings that serve one purpose each.

facts and entities define what is true, wordings how it is stated. passages makes the text, and
strangers adds one-off names and odd words.

It may import `config` and `files`, and no other corpus. Open passages.py first.
"""
