"""One request, from its checks to its events.

    inputs    checks of a visitor's values
    limits    the deadline of a run
    columns   the columns of a run, and those that share a batch
    scrubs    short answers at eleven lambdas, after a run
    chats     a chat's question, with each column's history
    stream    events as values for the page
    truth     the right answer's probabilities

It may import `ui.service` and `ui.door`. Open inputs.py first.
"""
