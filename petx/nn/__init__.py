"""Drop-in ``torch.nn`` modules over :mod:`petx.functional`."""

from petx._discover import export_modules

__all__ = export_modules(__name__, __path__, globals())
