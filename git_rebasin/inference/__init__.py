"""The symmetry of a function, read off its equations."""

from git_rebasin.inference import infer  # noqa: F401  (with it all rules are there)
