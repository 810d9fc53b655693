"""The tabs: compare, inspect, chat, corpus, results and about, one file per tab.

Each `build` lays out one tab and connects its events. It may import every other room of the page
but page.py. Open compare.py first.
"""
