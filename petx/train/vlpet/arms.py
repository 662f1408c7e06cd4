"""The models that a run compares: one host, tuned in different ways."""

from peft import LoraConfig, get_peft_model

from petx.train.vlpet import host
from petx.tuners.vlpet import VLPetConfig

PROJECTOR = "visual_embedding"


def build(arm, model, settings):
    """``model``, a host loaded anew, made into ``arm``: its trainable parameters have ``requires_grad``."""
    if arm in ("vlpet", "random-host"):
        return get_peft_model(model, vlpet_config(settings))
    if arm == "lora":
        return get_peft_model(model, lora_config(lora_rank(model, settings)))
    model.requires_grad_(arm in ("full", "scratch"))
    if arm == "projector":
        model.get_submodule(_projector_path(model)).requires_grad_(True)
    return model


def learning_rate(arm, settings):
    kind = {"random-host": "vlpet", "scratch": "full"}.get(arm, arm)
    return settings.lr if kind == "vlpet" else getattr(settings, f"lr_{kind}")


def vlpet_config(settings):
    return VLPetConfig(
        task_type="SEQ_2_SEQ_LM",
        granularity=settings.level,
        rank=settings.rank,
        heads=settings.heads,
        gate_rank=settings.gate_rank,
        decoder_rank=settings.decoder_rank,
        scale=settings.scale,
        zero_init_up=settings.zero_init or None,
        zero_init_gate=settings.zero_init or None,
    )


def lora_config(rank):
    """The LoRA baseline of VL-PET's paper: queries and values of every attention, all biases, and the projector.

    The scale is 1; the paper's alpha / r is 0.25 at rank 128.
    """
    return LoraConfig(
        task_type="SEQ_2_SEQ_LM",
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.1,
        target_modules=r".*\.(q_proj|v_proj|SelfAttention\.q|SelfAttention\.v|EncDecAttention\.q|EncDecAttention\.v)",
        modules_to_save=[PROJECTOR],
        bias="all",
    )


def lora_rank(model, settings):
    """The rank at which LoRA trains about as many parameters as VL-PET at ``settings``."""
    wanted = counts(get_peft_model(host.skeleton(model), vlpet_config(settings)))["trainable"]
    of_rank = [counts(get_peft_model(host.skeleton(model), lora_config(rank)))["trainable"] for rank in (1, 2)]
    per_rank = of_rank[1] - of_rank[0]
    return max(1, round((wanted - of_rank[0]) / per_rank + 1))


def counts(model):
    """Parameters ``trainable``, of these in the ``projector``, and ``total``; what PEFT keeps twice counts once."""
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    return {
        "trainable": sum(trained.values()),
        "projector": sum(count for name, count in trained.items() if PROJECTOR in name),
        "total": sum(p.numel() for name, p in model.named_parameters() if ".original_module." not in name),
    }


def _projector_path(model):
    return next(name for name, _ in model.named_modules() if name.endswith(PROJECTOR))
