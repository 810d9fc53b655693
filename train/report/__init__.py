"""The READMEs' tables and sentences, from a bundle's results: `python -m train.report`.

sentences fills the templates of train/readme, real_text saves the results of real text, bundle
puts findings and LoRA into a bundle.
It may import every room of `train` except `bench`. Open __main__.py first.
"""
