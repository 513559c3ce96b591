"""Commands of ``run.sh`` that are no scripts of the top level."""
