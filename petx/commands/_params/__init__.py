"""What ``petx params`` counts, one module per method: ``add_arguments``, ``rows`` and ``COLUMNS``."""
