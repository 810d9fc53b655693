"""Benchmarks of training as commands: our figure, this device's floor, and a peer's where given."""
