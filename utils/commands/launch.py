"""``torchrun`` that ends as the processes did that it started: with their status, without a traceback of its own."""

from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from dataset.failures import exit_after
from utils.commands import nodes


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status of the process that failed first, as a shell has it; 0 if none did."""
    nodes.register()
    try:
        torchrun(argv)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode  # below 0: minus the signal
    return 0


if __name__ == "__main__":
    exit_after(main, "run.sh")
