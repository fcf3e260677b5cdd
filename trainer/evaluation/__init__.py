"""Evaluation of retrieval and keywords: metrics, word alignments, and the engine that measures a split.

May import the configuration, the model and the data schema.
"""
