"""Training, data, metrics and the quickstart."""
