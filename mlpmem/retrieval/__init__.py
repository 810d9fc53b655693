"""The datastore: from texts to keys, and the search of them.

Documents are cut to passages, a decoder's hidden states are their keys (datastore, kept by
key_cache, in shards), and a Retriever finds the nearest: exact_search for a few queries,
bulk_search for many, inverted_file for tens of millions of keys. text_search is BM25.
It may import `model` and what lies below. Open datastore.py first, then retriever.py.
"""
