"""Plotly figures, imported only when one is drawn: summary of a bundle, studies of the questions.

It imports `results` and no other room of the page. Open summary.py first.
"""
