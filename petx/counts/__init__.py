"""What ``petx params`` counts, one module a method: ``add_arguments``, ``rows`` and ``COLUMNS``."""
