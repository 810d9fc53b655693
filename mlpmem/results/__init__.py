"""What was measured, as plain values: findings, questions and charts, without torch or Plotly.

findings checks a results.json, study_charts and cost_charts make charts of it, questions says what
they answer, answers in one sentence each, chats has the table of a chat model.
It may import everything below `ui`, and needs only names of `engine.trace`. Open findings.py first.
"""
