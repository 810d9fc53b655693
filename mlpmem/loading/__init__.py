"""From folders and the Hub to a model.

A bundle (bundle, with its manifest), parts of one's own (parts), published checkpoints (presets),
further columns (extra_columns, registry); hub fetches, capacity says what fits, distil trains a
small memory while the page runs.
It may import `mlpmem.api` and what lies below. Open bundle.py first, then parts.py.
"""
