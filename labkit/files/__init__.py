"""Bytes on disk, and nothing of models: safetensors and pickled headers, dtypes, direct I/O.

Also folders that appear whole or not at all, references (a folder or a hub id) and the user's
cache. May import the modules beside these folders (`errors`, `machine`, `summary`).
"""
