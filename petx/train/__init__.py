"""Training recipes: ``python -m petx.train.vlpet``, or ``petx train vlpet``."""
