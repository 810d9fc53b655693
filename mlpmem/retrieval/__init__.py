"""The datastore: from texts to keys, and the search of keys.

Documents are cut into passages. A decoder's hidden states are their keys (datastore, on disk by
key_cache, in shards; saved, a .zip of
one's own text). A Retriever finds the nearest ones: exact_search for a few queries,
bulk_search for many, inverted_file for tens of millions of keys. text_search finds words, and
origins the passages that say what a model wrote. own is a person's own texts.
It may import `model` and what lies below. Open datastore.py first, then retriever.py.
"""
