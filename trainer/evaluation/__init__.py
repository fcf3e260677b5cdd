"""Evaluation of retrieval and keywords: metrics, word alignments, and the one function that measures a split.

May import the configuration, the model, the data schema, the collator, and the results of hub_cards.
"""
