"""Data sets of speech and images: one schema, one loader, a module for each corpus.

Imports `datasets` and audio and image readers; knows nothing of training.
"""
