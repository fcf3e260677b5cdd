"""Spoken scenes: synthetic images with spoken captions, drawn and synthesised on this machine.

Imports the data schema and nothing else of this package.
"""
