"""The method (``curriculum``), the training engine, and what both need."""
