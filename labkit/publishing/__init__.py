"""What goes out to other programs and people: adapters, recipes of other tools, uploads.

A bake writes an adapter that has the layer weights inside it. May import `writing` and the folders
above it in CONTRIBUTING.md's table.
"""
