"""Studies: runs of a recipe that differ in some settings, each by several seeds, side by side.

A study is a YAML file below ``petx/recipes/studies``, or anywhere; ``petx study NAME`` runs it.
"""

from petx.studies.plan import Cell, Study, names, read

__all__ = ["Cell", "Study", "names", "read"]
