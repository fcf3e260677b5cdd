"""The corpora that are read from files: one module each."""
