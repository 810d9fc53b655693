"""From folders and the Hub to a model.

bundle and manifest read bundles, bundle_writer writes them; parts loads separate folders, presets
the published checkpoints, extra_columns and registry further columns. shipped lists the bundles in
assets/, decoder_file finds a decoder that a bundle names. hub downloads, hub_bundle finds bundles
on the Hub, packages finds files of installed packages, capacity checks what fits, distil trains a
small memory while the page runs, recorder completes a bundle's recordings.
It may import `mlpmem.api` and what lies below. Open bundle.py first, then parts.py.
"""
