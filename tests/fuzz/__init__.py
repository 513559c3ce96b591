"""Mutated inputs of every kind: what a reader makes of them is success or one line that names what is wrong."""
