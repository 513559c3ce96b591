"""Build the data, the network and the curriculum of a configuration."""
