"""Models, data and training for the tutorials and experiments; needs the `zoo` extra."""
