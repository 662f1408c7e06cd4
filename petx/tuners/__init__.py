"""PEFT tuners; importing this package registers them, so that ``peft.get_peft_model`` takes their configurations."""

from petx._discover import export_modules

__all__ = export_modules(__name__, __path__, globals())
