"""Conversion of published checkpoints and open_clip models into folders that `from_pretrained` loads.

May import the configuration, the model and the cards.
"""
