"""One file per stage; each reads folders and writes one. `train/run/pipeline.py` has their order.

atlas and text are the two kinds of corpus; examples and target_rows are parts of a stage.
It may import `fit`, `measure` and what lies below. Open corpus.py first.
"""
