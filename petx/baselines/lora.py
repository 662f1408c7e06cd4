"""LoRA, by PEFT: as published, or of the method's size."""

from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn

from petx.baselines._sizes import LORA_LR, LORA_RANK, rank_as_large_as_the_method, read_for_size
from petx.baselines.base import Baseline
from petx.hosts import Host
from petx.options import option


class Lora(Baseline):
    """LoRA as the paper places it on this host; by default as large as the method, with a scale of 1."""

    name, title, colour, order, lr = "lora", "LoRA (rank {rank_used})", "#0072B2", 30, "lr_lora"
    options = {
        "lr_lora": LORA_LR,
        "lora_rank": LORA_RANK,
        "lora_alpha": (float | None, option(None, "LoRA's alpha; its scale is alpha / rank (default: 1)", above=0)),
    }

    def reads(self, settings: Any) -> set[str]:
        found = super().reads(settings) | {"adapter_dropout"}  # PETAL's, which is LoRA's there, too
        return found if settings.lora_rank else found | read_for_size(settings)

    def build(self, host: type[Host], model: Any, settings: Any) -> nn.Module:
        size = host.lora_sizes(model, settings)
        rank = settings.lora_rank or rank_as_large_as_the_method(host, model, settings, size)
        given = host.lora(rank, settings)
        if settings.lora_alpha is not None:
            given["lora_alpha"] = settings.lora_alpha
        return get_peft_model(model.requires_grad_(False), LoraConfig(**given))

    def counts(self, model: Any) -> dict[str, int]:
        return {"rank_used": model.peft_config["default"].r}

    def titled(self, host: type[Host], settings: Any, record: dict[str, Any]) -> str:
        return super().titled(host, settings, {"rank_used": record.get("lora_rank")} | record)  # as once recorded


BASELINE = Lora()
