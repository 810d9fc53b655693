"""One file per kind of corpus: atlas, chat and text; `train/run/kinds.py` is their interface.

examples has what bundles of the atlas show; kept has what a memory of chats must leave to the
decoder. A kind is imported by its name in `train/config/corpus.py`.
It may import `fit`, `measure` and what lies below. Open text.py first.
"""
