"""Re-exports what the modules of a package name in ``__all__``, so that a new operation touches no list."""

import importlib
import pkgutil


def export_modules(package_name, path, namespace):
    """Import every public module under ``path`` into ``namespace``; returns the names for the package's ``__all__``."""
    names = []
    for info in pkgutil.iter_modules(path):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package_name}.{info.name}")
        for name in getattr(module, "__all__", ()):
            namespace[name] = getattr(module, name)
            names.append(name)
    return sorted(names)
