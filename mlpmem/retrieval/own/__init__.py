"""A store of a person's own texts, which are few: searched by state, by shared words, by order.

Open search.py first. It imports mlpmem.retrieval's documents, passages and texts, and
mlpmem.model; the datastore and the engine's gate use it.

sentences    texts in sentences, each keyed as a whole answer
words        which words of what was read a sentence has
search       the nearest entries of a store of sentences
"""
