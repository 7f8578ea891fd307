"""What data say of units, and statistics that are computed anew after a merge."""
