"""What a process knows of the launcher that started it (``utils.commands.launch``), and what it does when that is gone.

Nobody would end or restart a process without its launcher, and it would write where the next start does.
"""

import os
import signal
import threading
import time
from contextlib import suppress

from dataset.failures import say

LAUNCHER = "PYCDA_LAUNCHER"  # environment variable: process id of the launcher
POLL = 1.0  # seconds between two looks at the parent process, whose end no system but Linux would tell


def is_launched() -> bool:
    """Whether a launcher has this process, so that it passes stop signals on and ends what does not stop."""
    return LAUNCHER in os.environ


def follow_launcher() -> None:
    """Let this process get SIGTERM, which a training stops politely by, when its launcher has ended."""
    if is_launched():
        threading.Thread(target=_follow, args=(int(os.environ[LAUNCHER]),), daemon=True).start()


def _follow(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(POLL)
    with suppress(OSError, ValueError):  # its output may have gone with it
        say("the launcher has gone: this process stops as by SIGTERM")
    os.kill(os.getpid(), signal.SIGTERM)
