"""One file per stage; each reads folders and writes one. `train/run/pipeline.py` has their order.

target_rows is a part of the stage targets; `train/kinds` has what differs by the kind of corpus.
It may import `kinds` and what lies below. Open corpus.py first.
"""
