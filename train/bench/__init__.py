"""Benchmarks of training as commands: our figure, this device's floor, and a peer's where given.

step, search, rows and datastore are the benches; turns times them, released is the peer.
It may import `stages` and what lies below, and `mlpmem.bench`; nothing imports it.
Open __main__.py first.
"""
