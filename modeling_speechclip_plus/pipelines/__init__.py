"""Pipelines for `transformers.pipeline`: retrieval, keyword extraction, zero-shot classification, features.

May import the configuration and the model.
"""
