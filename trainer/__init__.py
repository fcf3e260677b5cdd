"""Training: the Trainer, its arguments, collator, samplers and caches.

May import the configuration, the model and the cards.
"""
