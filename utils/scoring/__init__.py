"""From a network to scores and pictures."""
