"""A run: its parts, the one loop, and the losses of each phase."""
