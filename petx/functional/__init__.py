"""Functional forms of petx's operations: differentiable, any device, fused where a kernel was built."""

from petx._discover import export_modules

__all__ = export_modules(__name__, __path__, globals())
