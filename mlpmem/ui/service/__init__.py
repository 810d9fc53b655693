"""The model behind the page: loaded in the background, one for all visitors.

    service    the model and its status
    loads      functions that load bundles, parts and presets
    offers     extra columns, loaded on first use
    facts      what the chat must know of a model
    taught     memories taught by visitors
    own_text   datastores of visitors' own texts
    uploads    the files they are made of

It may import `ui.door`. Open service.py first.
"""
