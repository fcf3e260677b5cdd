"""Cards, reports and pushes: facts rendered as Markdown and HTML, folders sent to the Hub.

May import the configuration; knows nothing of the model or of training.
"""
