"""From a configuration to its parts: data, network, curriculum."""
