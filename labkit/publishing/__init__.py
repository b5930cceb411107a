"""What goes out to other programs and people: bake, recipes of other tools, push.

May import `writing` and what is above it.
"""
