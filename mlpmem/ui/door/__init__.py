"""The door: access control, rate limits and resource limits in front of a public page.

Every limit is a row of `bounds.py` and can be set by an environment variable.

    bounds    the limits, and the variables that set them
    door      the ASGI middleware: route, origin, share, body, then Gradio
    replies   what the door sends by itself, and what it changes of Gradio's responses
    routes    the allowlist of Gradio's routes
    headers   security headers, and the sites that may post
    sizes     bodies are read whole, in time, and checked before Gradio sees them
    shares    who a client is; its requests per second, open requests, bytes held
    connections  those without a request: closed if its headers are slow
    sessions  session states, bounded per client; closed sessions are evicted first
    fair      the queue: turns by computing time, bounded jobs per client
    files     the process's temporary folder, uploads per client, and their sweep
    ending    exit on signals, after which nothing runs but what was registered here
    programs  the interface of what answers other programs
    pages     `/`, `/config` and `/info`, rendered once
    preview   how other sites show a link to the page
    health    `/health` for the host

It imports no other room of the page. `bounds`, `files` and `ending` import neither gradio nor
torch, because app.py needs them before Gradio is imported. Open door.py first.
"""
