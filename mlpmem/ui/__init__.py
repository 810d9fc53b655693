"""The page: one file per panel, one component for tokens, scripts and styles in static/.

page lays it out and launches it, endpoints are its API, context is what every panel receives.
Only this room and `space` import gradio. It may import every room of `mlpmem` but `hf`, `bench` and
`space`. Open page.py first, then panels/compare.py.
"""
