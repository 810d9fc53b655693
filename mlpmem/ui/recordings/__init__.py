"""The page without its model: what a bundle says before it is loaded, and runs that replay.

recorded reads a bundle's examples, comparisons and results, saved opens a visitor's runs, replay
makes a static site of them. recorded and words import no torch: the first screen reads them.
It may import `ui.request` and `ui.components`. Open recorded.py first.
"""
