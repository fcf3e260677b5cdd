"""Training: the Trainer, its arguments, collator, samplers and caches, index building and reports.

May import the configuration, the model and the cards.
"""
