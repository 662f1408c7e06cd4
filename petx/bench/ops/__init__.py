"""One module per operation, found by its name: what ``petx bench`` measures of it and beside what.

:mod:`petx.bench.table` asks every module for ``cases(shapes)`` and ``sweeps(factor)``; other users call ``case(...)``.
``literal``, ``eager`` and ``fused`` are the operation's forms, ``products`` its matrix products alone.
"""
