"""OpenAI's protocol on the page's server: /v1/models, /v1/completions, /v1/chat/completions.

    routes    the way of one request, and the switch
    requests  a body, checked, in the library's terms
    names     the names of models, and the systems behind them
    jobs      work that waits in the page's queue, and ends when its client leaves
    runs      a request's work: prompts read, echoed, continued
    pieces    from steps to text and tokens, with stop texts held back
    answers   the shapes of answers, streams and errors

It imports `ui.door`, `ui.request` and `ui.service`, and no panel. Open routes.py first.
"""
