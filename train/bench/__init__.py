"""Benchmarks of training as commands: our figure, this device's floor, and optionally a peer's.

step, search, rows and datastore are the benches; turns runs them, released is the peer. gpu is one
prepared run of parts.
It may import `stages` and what lies below, and `mlpmem.bench`; nothing imports it.
Open __main__.py first.
"""
