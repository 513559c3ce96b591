"""The files of a run: checkpoints, logs, ``run.json`` and the lock."""
