"""Two models or more in, permutations with their evidence out."""
