"""One file per stage, in the order of `train/run/pipeline.py`; each reads folders and writes one.

atlas and text are the two kinds of corpus; examples and target_rows are parts of a stage.
It may import `fit`, `measure` and what lies below. Open corpus.py first.
"""
