"""`python3 -I -S <copy>/__main__.py N` starts a runner; its settings are read from descriptor N."""

import os
import sys


def _main() -> None:
    # The copy may lie in a folder of any name, so the package gets a name of its own here.
    package = type(sys)("roost_runner")
    package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
    sys.modules["roost_runner"] = package
    import importlib

    importlib.import_module("roost_runner.runner").main(sys.argv[1])


if __name__ == "__main__":
    _main()
