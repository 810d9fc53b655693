"""The door: what may reach the page, from whom, how much of it, and what is kept of it.

A page that is hosted in public meets everybody. Every bound of that is here, one idea a file; all
of them are rows of `bounds.py` and can be set by environment variables. `door.py` is the ASGI
middleware that asks the others in turn.

    bounds    the numbers, and the variables that set them
    door      the way of one request: route, origin, share, body, and on to Gradio
    routes    which of Gradio's routes exist at all
    headers   what every answer says to a browser, and which sites may post
    sizes     bodies are read whole, in time, and checked before Gradio sees them
    shares    who a client is; requests per second, open requests, bytes held
    sessions  the visitors' state by session, bounded by client; closed ones go first
    fair      the queue: turns by computing time, shares of waiting jobs, nobody waits unheard
    files     the one folder of this process, uploads by client, and their sweep
    pages     `/`, `/config` and `/info`, rendered once
    health    what a host wants to know

It imports no other room of the page. `bounds` and `files` import neither gradio nor torch, because
app.py needs them before Gradio is imported. Open door.py first.
"""
