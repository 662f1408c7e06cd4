"""Presets: ``METHOD/NAME.yaml``, each with what differs from the one it ``extends``."""
