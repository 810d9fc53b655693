"""The page: one file a panel, one component for tokens, JavaScript and style in static/.

`page.build` lays it out, `service` loads a bundle behind it. Nothing imports from here upwards.
"""
