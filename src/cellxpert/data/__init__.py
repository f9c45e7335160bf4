"""Cells in, batches out: setup and checks, rows by name, vocabulary, tokens, splits, batches and loaders.

Import from the modules; this package loads none of them.
"""
