"""One request, from its checks to its events.

inputs checks what a visitor sends, limits bounds its seconds and bytes, columns says which systems
share a batch, stream turns events into the values that the page paints.
It may import `ui.service` and `ui.door`. Open inputs.py first.
"""
