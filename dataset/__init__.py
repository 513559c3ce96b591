"""Data sets: labels, folders, transforms, loaders, priors, and the embedded toy city."""
