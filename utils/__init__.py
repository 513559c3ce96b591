"""The method (``pycda``), the training engine, scores, commands, and what they share."""
