"""A store of a person's own texts, which are few: searched by state, by shared words, by order.

sentences cuts texts, each sentence keyed as a whole answer; words tells which words of what was
read a sentence has; search finds the nearest entries. The datastore makes stores of them, and the
engine's text_gate their lambda.
It may import the rest of `retrieval` but the datastore, and what lies below. Open search.py first.
"""
