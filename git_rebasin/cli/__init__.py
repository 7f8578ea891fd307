"""The command `git-rebasin`."""
