"""Where ConfigError was; to be imported from ``utils.config.schema``."""

from utils.config.schema import ConfigError as ConfigError
