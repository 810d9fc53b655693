"""The tabs: compare, inspect, chat, corpus, results and about, a file each.

`build` lays out one tab and says what its buttons do.

It may import every other room of the page but page.py. Open compare.py first.
"""
