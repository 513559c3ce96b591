"""Configuration: keys and defaults, strict YAML, the authors' keys, the command line."""
