"""The page: one file per tab in panels/, scripts and styles in static/.

page lays it out and serves it, endpoints are its API, context has the values shared by all panels.
Only this room and `space` import gradio. It may import every room of `mlpmem` but `hf`, `bench` and
`space`. Open page.py first, then panels/compare.py.
"""
