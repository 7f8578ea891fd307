"""Two models or more in, one model out, with what a reader must know of it."""
