"""Benchmarks of training as commands: our figure, this device's floor and, where given, a peer's."""
