"""The READMEs' tables and sentences, from a bundle's results: `python -m train.report`.

sentences fills the templates of train/readme, tables makes the tables of a results.json, real_text
saves the results of real text, bundle puts findings and LoRA into a bundle. push sends a bundle to
the Hub, with its card.
It may import every room of `train` except `bench`. Open __main__.py first.
"""
