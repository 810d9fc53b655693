"""Plotly figures: summary of a bundle's results, studies of reviewers' questions.

Plotly is imported when a figure is drawn. The room imports `results` and no other room of the page.
Open summary.py first.
"""
