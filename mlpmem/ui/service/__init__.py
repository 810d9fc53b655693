"""The model behind the page: loaded in the background, one for all visitors.

service has its status, loads opens bundles, parts and presets, offers makes further columns when
they are first asked for, own_text holds the visitors' own datastores.
It imports no other room of the page. Open service.py first.
"""
