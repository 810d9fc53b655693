"""From text to a bundle: corpus, decoder, datastore, targets, memory, evaluate, export.

Each stage reads folders and writes one. R rows of a memory's training data, S support of a sparse
target; the other letters are those of `mlpmem`. Nothing in `mlpmem` imports from here.

Imports run downwards only, deferred ones too; rooms of one line do not import one another:

    __main__, routing    the commands
    report, bench        what is read of a run, what training costs
    tasks, studies       what is asked of systems, what reviewers ask of a run
    stages               one file per stage
    fit, measure         the training loop; what systems answer
    run                  how stages run, and what they need
    corpora              from text to documents and tokens
    config               recipes
    files                small files

Open __main__.py first, then run/pipeline.py.
"""
