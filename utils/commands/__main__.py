"""``python -m utils.commands NAME [argument ...]``: ``run.sh`` starts this if NAME is no script."""

import sys
from collections.abc import Sequence
from importlib import import_module

from dataset.messages import nearest
from dataset.program import exit_after
from utils.config.read import ROOT
from utils.config.schema import ConfigError

COMMANDS = {  # module and function of this package
    "check": "check:main",
    "compare": "report:compare",
    "demo": "demo:main",
    "export": "export:main",
    "predict": "predict:main",
    "report": "report:main",
}
OF_RUN_SH = ("ablation", "benchmark", "test")  # commands of run.sh itself


def main(argv: Sequence[str] | None = None) -> int | None:
    name, *others = sys.argv[1:] if argv is None else argv
    if name not in COMMANDS:
        scripts = sorted(path.name for path in ROOT.glob("*.py"))
        known = [*scripts, *sorted([*COMMANDS, *OF_RUN_SH])]
        raise ConfigError(f"no script or command {name}; the nearest is {nearest(name, known)} of {', '.join(known)}")
    module, function = COMMANDS[name].split(":")
    return getattr(import_module(f"utils.commands.{module}"), function)(others)


if __name__ == "__main__":
    exit_after(main, "run.sh")
