"""Training recipes: ``petx train vlpet`` and ``petx train petal``, or ``python -m petx.train.METHOD`` for torchrun."""

METHODS = ("vlpet", "petal")
"""Names of the recipes."""
