"""Which path each operation took, for a checkpoint, and what differs from that when a run goes on."""

from typing import Any

import torch

from petx._checks import refuse_type
from petx.certify import cards as machine
from petx.certify import choice

PATHS = {True: "kernel", False: "reference"}


def record() -> dict[str, Any]:
    """What this process has chosen so far, as JSON can hold it.

    ``cpu``: operation -> path. ``cuda``: the path of each operation, card, dtype and shape class that was asked for.
    """
    from petx import ops

    names = ("operation", "card", "dtype", "bits", "width", "rank", "path")
    classes = [dict(zip(names, (*_named(key), PATHS[a]), strict=True)) for key, a in choice._answers.items()]
    cpu = {stem: PATHS[ops.has_kernel(stem, "cpu")] for stem in ops.known()}
    return {"cpu": cpu, "cuda": sorted(classes, key=str)}


def _named(key: tuple[Any, ...]) -> tuple[Any, ...]:
    stem, device, dtype, *sizes = key
    return (stem, _card_name(device), choice.dtype_name(dtype), *sizes)


def _card_name(device: int) -> str:
    choices = choice._of.get(max(device, 0))
    return choices.card.name if choices is not None and choices.card is not None else "no card"


def differences(saved: dict[str, Any]) -> list[str]:
    """What another path is taken for now than when ``saved`` was recorded, in words; empty if all is as it was.

    The results of two paths agree within rounding, and not to the bit.
    """
    from petx import ops

    if not isinstance(saved, dict):
        refuse_type("differences", "saved", "what record() gave", saved)
    found = []
    for stem, path in saved.get("cpu", {}).items():
        now = PATHS[ops.has_kernel(stem, "cpu")]
        if now != path:
            found.append(f"{stem} on the CPU: {path} before, {now} now")
    used = [entry for entry in saved.get("cuda", [])]
    names = {machine.cards.card(i).name for i in range(machine.cards.count())} if used else set()
    said: dict[tuple[str, str, str], None] = {}
    for entry in used:
        stem, card, dtype = entry["operation"], entry["card"], entry["dtype"]
        if card not in names:
            there = " and ".join(sorted(names)) or "no GPU"
            said.setdefault((stem, dtype, f"on {card} before, {there} now"))
            continue
        index = next(i for i in range(machine.cards.count()) if machine.cards.card(i).name == card)
        rows = float("nan") if entry["bits"] is None else 0.75 * 2 ** entry["bits"]
        choices = choice.of(index)
        now = PATHS[choices.takes(stem, getattr(torch, dtype), rows, entry["width"] or 0, entry["rank"])]
        if now != entry["path"]:
            said.setdefault((stem, dtype, f"on {card}: {entry['path']} before, {now} now"))
    return found + [f"{stem} in {dtype} {what}" for stem, dtype, what in said]
