"""Cards and what publishes a model."""
