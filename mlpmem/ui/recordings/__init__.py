"""The page's content without a model: recorded and saved runs, examples, results, texts.

    recorded  a bundle's examples, comparisons and results
    saved     a visitor's saved runs
    rounds    recorded questions as a game
    replay    recorded runs as a static site
    words     texts that depend on the corpus
    value     the sentence of value and its figures

recorded, words and value need no torch, because the first screen uses them. It may import
`ui.request` and `ui.components`. Open recorded.py first.
"""
