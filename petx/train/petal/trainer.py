"""The trainer with PETAL's schedules, weight decay and information bottleneck."""

import math
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from petx.baselines._sizes import ESTIMATORS
from petx.data.batches import RoundRobinBatches
from petx.train.trainer import PetTrainer, warmup_steps

_EXEMPT = ("bias", "ln", "bn")  # parts of names, in the released code
_MODES = "petal_mode"  # which are vectors here, and [R, 1] there: decayed


class PetalTrainer(PetTrainer):
    """Adds to its base: the learning rate of ``settings``, the released weight decay, the information bottleneck."""

    def __init__(self, *args: Any, settings: Any, **kwargs: Any) -> None:
        self.settings = settings
        super().__init__(*args, **kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        if self.lr_scheduler is None:
            settings, top = self.settings, self.args.learning_rate
            batches = RoundRobinBatches.epoch_steps(list(map(len, self.tasks)), self.batch_sizes, self.drop_last)
            an_epoch = math.ceil(batches / self.args.gradient_accumulation_steps)
            warm = warmup_steps(settings, num_training_steps)

            def factor(step: int) -> float:
                options = dict(warm=warm, low=settings.lr_warmup, end=settings.lr_min, an_epoch=an_epoch)
                return learning_rate(step, top, num_training_steps, settings.schedule, **options) / top

            decided = optimizer or self.optimizer
            assert decided is not None
            self.lr_scheduler = LambdaLR(decided, factor)
        return self.lr_scheduler

    def paper_decay(self, model: nn.Module) -> list[str]:
        """Mode vectors, and what has two and more dimensions and no "bias", "ln" or "bn" in its name."""
        named = model.named_parameters()
        wanted = [name for name, p in named if p.dim() > 1 or _MODES in name]
        return [name for name in wanted if not any(part in name for part in _EXEMPT)]

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.get("labels")  # none in a batch of retrieval
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        bottleneck = getattr(self.accelerator.unwrap_model(model), ESTIMATORS, None)
        if bottleneck is not None:
            config: Any = self._trained.config
            count = config.num_query_tokens
            queries = outputs.qformer_outputs.last_hidden_state[:, :count].float()
            loss = loss + bottleneck(queries, outputs.vision_outputs.last_hidden_state.float(), labels)
        return (loss, outputs) if return_outputs else loss


def learning_rate(
    step: int, top: float, steps: int, schedule: str, *, warm: int, low: float, end: float, an_epoch: int
) -> float:
    """Learning rate of ``step``: from ``low`` to ``top`` over ``warm`` steps, then to ``end``.

    ``linear`` and ``cosine`` go down by step. ``cosine-by-epoch`` is PETAL's: all of the first epoch is warm-up, at
    ``top`` once that is over, and every later epoch has one rate, the cosine's.
    """
    if schedule == "cosine-by-epoch":
        epoch, epochs = step // an_epoch, max(1, math.ceil(steps / an_epoch))
        if epoch:
            return end + (top - end) * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        return min(top, low + (top - low) * step / warm) if warm else top
    if step < warm:
        return low + (top - low) * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    left = 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return end + (top - end) * max(0.0, left)
