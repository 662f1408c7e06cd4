"""A new Python that has this very petx, and does not look for modules in the folder that it is started in."""

import sys
from pathlib import Path

_START = """
import importlib, importlib.util, sys
root, module = sys.argv[1:3]
del sys.argv[1:3]
found = importlib.util.find_spec("petx")
if found is None or not str(found.origin).startswith(root):
    sys.path.insert(0, root)
sys.exit(importlib.import_module(module).main())
"""


def command(module: str, *arguments: str) -> list[str]:
    """The command that runs ``main()`` of ``module`` with ``arguments`` in its ``sys.argv``."""
    return [sys.executable, "-P", "-c", _START, str(Path(__file__).parents[1]), module, *arguments]
