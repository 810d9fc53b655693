"""The model behind the page: loaded in the background, one for all visitors.

service has its status, loads opens bundles, parts and presets, offers makes further columns when
they are first asked for, own_text holds the visitors' own datastores, ending is how it all ends.
It may import `ui.door`. Open service.py first.
"""
