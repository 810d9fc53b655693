"""Teaching: a copy of the memory learns new sentences within a minute, beside rows of old text.

    facts      the facts of a corpus: what its documents answer
    wordings   the facts in sentences, in the wordings that the corpus has for such facts
    rows       keys and values of new wordings, and old rows with the old memory's answers
    lesson     the loop: trains the copy and yields its progress

It may import `api` and what lies below it. Open lesson.py first.
"""
