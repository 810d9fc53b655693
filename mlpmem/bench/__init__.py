"""What it costs to answer: `python -m mlpmem.bench`. Measures this machine, here and now."""
