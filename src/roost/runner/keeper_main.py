"""`python3 -I <copy>/keeper_main.py RUN_DIR LOG_FILE` starts a keeper in the background."""

import os
import sys


def _main() -> int:
    # The copy may lie in a folder of any name, so the package gets a name of its own here.
    package = type(sys)("roost_runner")
    package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
    sys.modules["roost_runner"] = package
    import importlib

    status: int = importlib.import_module("roost_runner.keeper").main()
    return status


if __name__ == "__main__":
    sys.exit(_main())
