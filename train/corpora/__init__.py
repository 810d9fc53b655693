"""Corpora made or prepared by this project; each is a file that yields passages of documents."""
