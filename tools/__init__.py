"""What keeps the repository together: it is run by the Makefile and is no part of the package."""
