"""Whole-or-nothing checkpoints: one file holds everything that a run needs to go on."""

import os
import subprocess
from pathlib import Path
from typing import Any

import torch

BEST, LAST, CONVERTED = "best.pth", "last.pth", "adabn.pth"


def save_atomic(state: dict[str, Any], path: Path) -> None:
    """Write ``state`` so that ``path`` is at every moment either the old file or the whole new one."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def load(path: Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running code from it."""
    return torch.load(path, map_location=map_location, weights_only=True)


def resolve_weights(path: str) -> Path:
    """File of a run's result: ``path`` itself, or in a run folder best.pth, else last.pth (a run without validation)."""
    given = Path(path)
    candidates = [given, given / BEST, given / LAST]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"no weights at {given}: looked for {', '.join(map(str, candidates))}; train that run first")


def git_revision() -> str:
    """Commit of the code, or "unknown" outside a git checkout."""
    result = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or "unknown"
