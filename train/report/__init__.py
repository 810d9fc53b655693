"""The READMEs' tables and sentences, made of a bundle's results: `python -m train.report`.

sentences fills templates of train/readme, real_text keeps the table of real text, bundle puts
findings and LoRA into a bundle.
It may import every room of `train` but `bench`. Open __main__.py first.
"""
