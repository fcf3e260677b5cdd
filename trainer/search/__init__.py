"""Search: building an embedding index from folders and data sets, and pages that show what was found.

May import the model and the data sets.
"""
