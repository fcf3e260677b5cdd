"""The model, its modules, and the processor."""
