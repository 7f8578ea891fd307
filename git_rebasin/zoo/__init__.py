"""Models, data and training for the tutorials and experiments."""
