"""What it costs to answer: `python -m mlpmem.bench`. Measures this machine, here and now.

Every bench (decode, engine, llama, streams, systems, search, prompts) yields Figures (figures),
each with its floor and, where there is one, its peer.
It may import every room of `mlpmem` but `ui`, `hf` and `space`; only benches, and the study of
costs, import it. Open __main__.py first.
"""
