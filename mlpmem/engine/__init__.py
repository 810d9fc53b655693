"""The path of a token, from prompt ids to the values of a step.

distributions has the maths, as pure functions; fused has every source's log-probs and their mix;
router chooses lambda, and text_gate that of own texts; generation runs a call, several systems
as one batch; scoring reads a given text.
It may import `retrieval` and what lies below. Open fused.py first, then generation.py.
"""
