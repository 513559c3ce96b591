"""Mutated inputs of every kind: reading them succeeds or gives one line that names the mistake."""
