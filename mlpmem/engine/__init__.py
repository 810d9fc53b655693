"""A token's whole path, from prompt ids to the values of a step.

The maths is in distributions, as pure functions; fused has every source's log-probs and their mix;
router chooses lambda; generation writes columns as one batch, scoring reads a text as it stands.
It may import `retrieval` and what lies below. Open fused.py first, then generation.py.
"""
