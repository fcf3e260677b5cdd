"""Weights of the original research code, and of open_clip, turned into models of this package and of transformers."""
