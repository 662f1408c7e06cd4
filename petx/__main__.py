"""``python -m petx`` is the command ``petx``."""

from petx.cli import run

run()
