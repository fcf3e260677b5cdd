"""Configuration of SpeechCLIP+ models, their presets, vocabularies and published results.

Imports transformers and nothing of this package.
"""
