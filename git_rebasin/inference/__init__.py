"""The symmetry of a function, read off its equations."""
