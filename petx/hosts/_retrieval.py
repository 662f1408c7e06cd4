"""What hosts share that embed images and captions for retrieval: batches of pairs, and their loss."""

from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from petx import tasks
from petx.data.batches import padded
from petx.data.pairs import RETRIEVAL
from petx.errors import UserError
from petx.hosts.base import Host
from petx.losses import contrastive_loss, hard_negatives
from petx.models import Temperature

Inputs = dict[str, Tensor]
HEADS = ("vision_projection", "text_projection", "itm_head", "temperature")


class Retrieves(Host):
    """A host for retrieval.

    A batch of pairs has what :meth:`pictures` and :meth:`captions` make of its items, ``same [B, B]`` (whether two
    pairs have one image), ``matching`` and ``loss_over``.
    """

    retrieves = True

    # ---- to be written ----

    def pictures(self, items: list[dict]) -> Inputs:
        """A batch of images, of :meth:`petx.data.pairs.Pairs.picture`."""
        raise NotImplementedError

    def seen(self, model: Any, batch: Inputs) -> Inputs:
        """What is computed of images once, whatever text they meet; each entry ``[B, ...]``."""
        raise NotImplementedError

    def embed_images(self, model: Any, seen: Inputs) -> Tensor:
        """Unit vectors ``[B, Q, D]``, Q of them an image; its similarity is the largest of theirs."""
        raise NotImplementedError

    def match(self, model: Any, seen: Inputs, captions: Inputs) -> Tensor:
        """Logits ``[B, 2]`` of image and text not belonging together, and belonging."""
        raise NotImplementedError

    # ---- for all ----

    def batch(self, items: list[dict]) -> dict[str, Any]:
        return self.pairs(items) if items[0]["loss"] == RETRIEVAL else self.collate(items)

    def captions(self, items: list[dict]) -> Inputs:
        """``input_ids`` and ``attention_mask [B, L]`` of :meth:`petx.data.pairs.Pairs.caption`."""
        ids, mask = padded([item["input_ids"] for item in items], self.text_pad)
        return {"input_ids": ids, "attention_mask": mask}

    text_pad: int  # of the tokenizer that reads captions

    def embed_texts(self, model: Any, batch: Inputs) -> Tensor:
        """Unit vectors ``[B, D]`` of :meth:`captions`, by the model's method of that name."""
        return model.embed_texts(batch["input_ids"], batch["attention_mask"])

    def pairs(self, items: list[dict]) -> dict[str, Any]:
        """A batch to train on."""
        images = list(dict.fromkeys(item["image"] for item in items))
        place = torch.tensor([images.index(item["image"]) for item in items])
        more = {"same": place[:, None] == place, "matching": items[0]["matching"], "loss_over": RETRIEVAL}
        return self.pictures(items) | self.captions(items) | more

    def retrieval_loss(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Contrastive loss, and the matching loss of the pairs and of hard negatives, weighted by ``matching``."""
        inner: Any = bare(model)
        seen, same = self.seen(inner, batch), batch["same"]
        similarity = similarities(self.embed_images(inner, seen), self.embed_texts(inner, batch))
        scaled = inner.temperature(similarity)
        loss = contrastive_loss(scaled, same)
        if not batch["matching"]:
            return loss
        if not bool(scaled.isfinite().all()):
            raise UserError(
                "the similarities of a batch's images and captions are not finite: the training diverged; lower lr, or "
                "with amp=fp16 take bf16"
            )
        own = torch.arange(len(same), device=same.device)
        images, texts = hard_negatives(scaled, same)
        seen = {name: torch.cat([tensor, tensor[images]]) for name, tensor in seen.items()}
        captions = {name: torch.cat([batch[name], batch[name][texts]]) for name in ("input_ids", "attention_mask")}
        labels = torch.cat([torch.ones_like(own), torch.zeros_like(images)])
        return loss + batch["matching"] * F.cross_entropy(self.match(inner, seen, captions).float(), labels)


def retrieval_width(settings: Any) -> dict[str, int]:
    """The field of a host's configuration that gives it its heads; nothing without a task of retrieval."""
    return {"retrieval_width": settings.retrieval_width} if tasks.retrieval(settings) else {}


def pair_options(settings: Any) -> dict[str, Any]:
    """Arguments of :class:`petx.data.pairs.Pairs`: what was not trained to match does not rank."""
    return {"matching": settings.matching, "rerank": settings.rerank if settings.matching else 0}


def bare(model: Any) -> Any:
    """``model`` without PEFT's wrapper, whose forward it is not called by."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def similarities(images: Tensor, texts: Tensor) -> Tensor:
    """``[N, M]`` of ``images [N, Q, D]`` and ``texts [M, D]``: the largest of an image's vectors'."""
    return (images @ texts.T).amax(1)


def head_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of ``model`` that only retrieval reads, by name; none of a model that is not for it."""
    found: Any = bare(model)
    if not isinstance(getattr(found, "temperature", None), Temperature):
        return {}
    return {name: getattr(found, name) for name in HEADS if hasattr(found, name)}
