"""The configuration, its presets and vocabularies."""
