"""What PETAL adapts in each kind of host, if nothing is said: one entry per kind, found by model type.

Attentions, layers and the experts' place are then found by the names of their modules (towers.py, places.py).
"""

__all__ = ["TOWERS"]

TOWERS: dict[str, list[str]] = {
    "instructblip": ["qformer"],
    "instructblipvideo": ["qformer"],
    "blip-2": ["qformer"],
    "llava": ["language_model"],
}
