"""The model, its processor, and what both need at inference: audio, images, embedding index, remote code.

May import the configuration; knows nothing of data sets, cards or training.
"""
