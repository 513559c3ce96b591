"""What a run leaves behind and goes on from: checkpoints and logs."""
