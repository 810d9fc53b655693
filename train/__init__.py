"""From text to a bundle: corpus, decoder, datastore, targets, memory, evaluate, export.

Each stage reads folders and writes one. R rows of a memory's training data, S support of a sparse
target; the other letters are those of `mlpmem`. Nothing in `mlpmem` imports from here.
"""
