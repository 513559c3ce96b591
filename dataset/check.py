"""``python -m dataset.check CONFIG`` is ``sh run.sh check CONFIG`` by an older name."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv[1:1] = ["check"]
    runpy.run_module("utils.commands", run_name="__main__")
