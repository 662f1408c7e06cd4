"""What the kernels cost, counted: nvcc's PTX is executed for the published shapes, a sample of each launch's blocks.

``python -m tests.emulator.cost`` prints the counts, the floors and a modelled time; ``test_contracts.py`` holds the
counts to ``table.json`` and to the contracts. docs/cost.md says how to read both.
"""
