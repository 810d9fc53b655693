"""MLP Memory: a frozen decoder, its kNN datastore, and a memory trained to answer like it.

Letters of shapes, the same everywhere: B batch, T tokens, D hidden size, V vocabulary,
N datastore entries, K neighbours, S support of a sparse target.

    import mlpmem
    model = mlpmem.load()                     # the embedded bundle, or a bundle's path
    trace = model.generate("Question: What is the capital of Peru? Answer:", system="memory")
"""
