"""What may move together, and how it moves."""
