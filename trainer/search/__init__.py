"""Search: building an embedding index of a folder or a data set, and pages of what was found in it.

May import the model and the data sets.
"""
