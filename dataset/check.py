"""``python -m dataset.check CONFIG`` is ``sh run.sh check CONFIG`` by an older name."""

import runpy

if __name__ == "__main__":
    runpy.run_module("utils.commands.check", run_name="__main__")
