"""VL-Adapter and Compacter: adapters behind every sub-layer of encoder and decoder, as in VL-PET's table.

Both are :class:`petx.tuners.VLPetConfig` without a gate at other places, so that they run on the same kernels.
"""

from typing import Any, ClassVar

from peft import get_peft_model
from torch import nn

from petx.baselines._sizes import ADAPTER_RANK, counts, rank_as_large_as_the_method, read_for_size
from petx.baselines.base import Baseline
from petx.errors import UserError
from petx.hosts import Host
from petx.options import option
from petx.tuners import VLPetConfig
from petx.tuners.vlpet.hosts import preset_of

# The last linear of every sub-layer, by the preset of the model's type.
PLACES = {
    "bart": r"(?:.*\.)?(?:encoder|decoder)\.layers\.\d+\.(?:self_attn\.out_proj|encoder_attn\.out_proj|fc2)",
    "t5": r"(?:.*\.)?(?:encoder|decoder)\.block\.\d+\.layer\.\d+\."
    r"(?:SelfAttention\.o|EncDecAttention\.o|DenseReluDense\.wo)",
}


class VLAdapter(Baseline):
    """VL-Adapter's single adapter: a bottleneck behind every sub-layer, all norms, and the visual embedding."""

    name, title, colour, order = "vl-adapter", "VL-Adapter (bottleneck {rank_used})", "#CC79A7", 40
    methods, lr = ("vlpet",), "lr_vl_adapter"
    options: ClassVar[dict[str, tuple[Any, Any]]] = {
        "lr_vl_adapter": (float, option(3e-3, "peak learning rate of VL-Adapter", above=0)),
        "adapter_rank": ADAPTER_RANK,
    }

    def reads(self, settings: Any) -> set[str]:
        return super().reads(settings) | (set() if settings.adapter_rank else read_for_size(settings))

    def build(self, host: type[Host], model: Any, settings: Any) -> nn.Module:
        def size(rank: int) -> int:
            tuned = get_peft_model(host.skeleton(model), self.config(model, rank, settings))
            return counts(host, tuned)["trainable"]

        unit = self.unit(settings)
        rank = settings.adapter_rank or rank_as_large_as_the_method(host, model, settings, size, unit)
        return get_peft_model(model, self.config(model, rank, settings))

    def unit(self, settings: Any) -> int:
        """What a bottleneck must be a multiple of."""
        return 1

    def config(self, model: Any, rank: int, settings: Any, **more: Any) -> VLPetConfig:
        """The tuner's configuration; initial values are the released code's, none of them zero on purpose."""
        preset = preset_of(model.config.model_type) or ""
        return VLPetConfig(
            task_type="SEQ_2_SEQ_LM",
            granularity="none",
            rank=rank,
            heads=1,
            scale=1.0,
            zero_init_up=False,
            encoder_sites=[dict(name="or decoder sub-layer", output=PLACES[preset])],
            decoder_value=False,
            train_decoder_norms=True,
            **more,
        )

    def counts(self, model: Any) -> dict[str, int]:
        return {"rank_used": model.peft_config["default"].rank}


class Compacter(VLAdapter):
    """Compacter: VL-Adapter's places, each weight a sum of Kronecker products."""

    name, title, order, lr = "compacter", "Compacter (bottleneck {rank_used})", 41, "lr_compacter"
    options: ClassVar[dict[str, tuple[Any, Any]]] = {
        "lr_compacter": (float, option(3e-3, "peak learning rate of Compacter", above=0)),
        "adapter_rank": ADAPTER_RANK,
        "compacter_order": (int, option(2, "Compacter: order n of the Kronecker sums, which divides widths", least=1)),
    }

    def check(self, settings: Any) -> None:
        rank, order = settings.adapter_rank, settings.compacter_order
        if rank is not None and rank % order:
            raise UserError(f"compacter_order must divide adapter_rank, got {order} and {rank}")

    def unit(self, settings: Any) -> int:
        return settings.compacter_order

    def config(self, model: Any, rank: int, settings: Any, **more: Any) -> VLPetConfig:
        phm = dict(modification="phm", phm_order=settings.compacter_order)
        return super().config(model, rank, settings, **phm, **more)


BASELINES = [VLAdapter(), Compacter()]
