"""LoRA, by PEFT: as published, or of the method's size."""

from collections.abc import Callable
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn

from petx.baselines._sizes import LORA_LR, LORA_RANK, rank_as_large_as_the_method, read_for_size
from petx.baselines.base import Baseline
from petx.errors import UserError
from petx.hosts import Host
from petx.hosts.base import lora_sizes
from petx.options import option


class Lora(Baseline):
    """LoRA as the paper places it on this host; by default as large as the method, with a scale of 1."""

    name, title, colour, order, lr = "lora", "LoRA (rank {rank_used})", "#0072B2", 30, "lr_lora"
    options = {
        "lr_lora": LORA_LR,
        "lora_rank": LORA_RANK,
        "lora_image_rank": (
            int | None,
            option(
                None, "LoRA's rank for the Q-Former's image features, the widest input (default: lora_rank)", least=1
            ),
        ),
        "lora_alpha": (float | None, option(None, "LoRA's alpha; its scale is alpha / rank (default: 1)", above=0)),
    }

    def reads(self, settings: Any) -> set[str]:
        found = super().reads(settings) | {"adapter_dropout"}  # PETAL's, which is LoRA's there, too
        return found if settings.lora_rank else found | read_for_size(settings)

    def unread_on(self, host: type[Host], settings: Any) -> set[str]:
        return super().unread_on(host, settings) | (set() if host.lora_images else {"lora_image_rank"})

    def build(self, host: type[Host], model: Any, settings: Any) -> nn.Module:
        size, of_images = host.lora_sizes(model, settings), settings.lora_image_rank
        if of_images is not None:
            if host.lora_images is None:
                raise UserError(f"lora_image_rank is for a Q-Former, got {of_images} and {host.words}; leave it out")
            size = _apart(size, lora_sizes(model, host.lora_images), of_images)
        rank = settings.lora_rank or rank_as_large_as_the_method(host, model, settings, size)
        given = host.lora(rank, settings)
        if settings.lora_alpha is not None:
            given["lora_alpha"] = settings.lora_alpha
        if of_images is not None:  # at the same scale
            alpha = of_images * given["lora_alpha"] / rank
            given |= {"rank_pattern": {host.lora_images: of_images}, "alpha_pattern": {host.lora_images: alpha}}
        return get_peft_model(model.requires_grad_(False), LoraConfig(**given))

    def counts(self, model: Any) -> dict[str, int]:
        return {"rank_used": model.peft_config["default"].r}

    def titled(self, host: type[Host], settings: Any, record: dict[str, Any]) -> str:
        title = super().titled(host, settings, {"rank_used": record.get("lora_rank")} | record)  # as once recorded
        of_images = settings.lora_image_rank
        return title if of_images is None else f"{title.removesuffix(')')}, {of_images} for images)"


def _apart(size: Callable[[int], int], of_images: Callable[[int], int], rank: int) -> Callable[[int], int]:
    """``size`` by rank where the places counted by ``of_images`` have ``rank`` whatever the others have."""
    return lambda others: size(others) - of_images(others) + of_images(rank)


BASELINE = Lora()
