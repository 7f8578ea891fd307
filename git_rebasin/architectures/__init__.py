"""Public networks as plain functions over their key names."""
