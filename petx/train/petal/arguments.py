"""Settings of ``petx train petal``."""

import dataclasses
import functools
from typing import ClassVar

from petx import metrics, tasks
from petx.data.instructions import instruction
from petx.errors import UserError
from petx.options import option
from petx.train import settings
from petx.train.settings import Common, with_baselines

GENERATION = ("num_beams", "max_new_tokens", "min_new_tokens", "length_penalty", "repetition_penalty")


@with_baselines
@dataclasses.dataclass
class Settings(Common):
    """Everything one run of PETAL's recipe depends on."""

    recipe: ClassVar[str] = "petal"
    positive: ClassVar[tuple] = ("rank", "expert_rank", "queries", "lm_layers", "layers", *Common.positive)
    after_host: ClassVar[tuple] = (
        *("rank", "core", "threshold", "threshold_per_rank", "adapter_dropout", "shared_mask"),
        *("experts", "expert_rank", "expert_gate", "expert_top_k", "expert_scope", "expert_alpha", "expert_beta"),
        *("context", "query_transform", "ib", "ib_weight", "ib_eta", "ib_learnable", "ib_sign", *Common.after_host),
    )

    # data
    data: str = option("easy-vqa", "data set", choices=tasks.kinds("petal"))
    images_dir: str | None = option(None, "own data: folder of the image files (default: images in DATA_DIR)")
    augment: str = option(
        "none", "own data: augmentation of the training images", choices=("none", "crop", "crop-flip")
    )
    metrics: dict = option({}, "own data: {task: metric}, over the task's own")
    targets: str = option("sampled", "own data: which answer is trained on", choices=("sampled", "first"))
    instructions: list = option(
        ["{q}"], "instruction templates, a YAML list; several: one Q-Former pass each", sentences=True
    )
    task_instructions: dict = option({}, "own data: {task: [templates]}, over instructions")
    eval_instructions: list = option([], "templates of evaluation, if other than in training", sentences=True)
    clean_instructions: bool = option(False, "lower case without punctuation, as released")
    aggregation: str = option(
        "attention_score",
        "how the features of several instructions are aggregated",
        choices=("mean", "attention_score"),
    )
    max_text: int = option(128, "longest instruction in tokens; longer ones lose their beginning")
    max_target: dict = option({}, "own data: {task: tokens of an answer}, over the task's own")
    generation: dict = option({}, f"how answers are generated: {', '.join(GENERATION)}")

    # host
    host: str | None = option(
        None, "pretrained InstructBLIP, BLIP-2 or LLaVA, folder or hub name (default: a small one pretrained here)"
    )
    dtype: str = option("float32", "own host: type of its weights", choices=("float32", "bfloat16", "float16"))
    language_model: str = option("t5", "small host: its language model", choices=("t5", "llama", "smollm2"))
    width: int = option(96, "small host: width of the Q-Former, and of a t5 or llama")
    layers: int = option(4, "small host: layers of the Q-Former, every other one with cross-attention")
    lm_layers: int = option(2, "small host: layers of the language model (t5: of encoder and decoder each)")
    attention_heads: int = option(4, "small host: attention heads")
    ffn: int = option(192, "small host: width of the feed-forward layers")
    queries: int = option(4, "small host: query tokens")
    init_std: float = option(0.1, "small host: standard deviation of the Q-Former's initial weights")

    # PETAL
    rank: int = option(16, "rank of the mode approximation")
    core: str = option(
        "full", "core tensor, as released, or diagonal, as in the paper's CP", choices=("full", "diagonal")
    )
    threshold: str = option(
        "soft", "gate of the core by the learnable threshold", choices=("none", "soft", "hard", "sigmoid")
    )
    threshold_per_rank: bool = option(False, "a threshold for each of the rank's components")
    adapter_dropout: float = option(0.0, "dropout of the mode approximation, and of LoRA")
    shared_mask: bool = option(False, "one dropout mask for the projections of one input")
    experts: int = option(6, "instruction experts; 0: none")
    expert_rank: int = option(8, "bottleneck of an expert")
    expert_gate: str = option(
        "token", "gate of the experts: all alike, per token or per sample", choices=("uniform", "token", "sample")
    )
    expert_top_k: int | None = option(None, "experts that a token goes through (default: all)")
    expert_scope: str = option("all", "tokens the experts read", choices=("all", "text"))
    expert_alpha: float = option(0.6, "share of the embedding itself")
    expert_beta: float = option(0.4, "share of the experts")
    context: str = option(
        "off",
        "context enhancement; batch_mean couples the samples of a batch",
        choices=("off", "batch_mean", "per_sample"),
    )
    query_transform: bool = option(True, "scale and shift of the query transformation")
    ib: str = option("off", "information bottleneck", choices=("off", "authors", "corrected", "variational"))
    ib_weight: float = option(0.1, "weight of the information bottleneck's loss, κ")
    ib_eta: float = option(0.1, "its trade-off between target and input, η")
    ib_learnable: bool = option(False, "authors: κ is learnt, as released; it then starts at 0")
    ib_sign: int = option(1, "authors: 1 as released, which lowers I(Z;Y) if κ > 0; or -1", choices=(1, -1))

    # tuning
    arms: list = option(
        ["frozen", "petal", "lora", "adapter", "head", "full"], "what to compare; --list shows what there is"
    )
    with_arms: list = option([], "further arms: an ablation, a control, or all 'ablations'", flag="with")
    lr: float = option(3e-3, "peak learning rate of PETAL")
    lr_min: float = option(0.0, "learning rate at the end")
    lr_warmup: float = option(0.0, "learning rate at the beginning of the warm-up")
    schedule: str = option(
        "linear", "decay by step, or as released: cosine, by epoch", choices=("linear", "cosine", "cosine-by-epoch")
    )
    warmup: float = option(0.1, "linear warm-up: share of the steps, or their number from 1 on")
    decay: str = option(
        "clean",
        "weight decay exempts norms and biases (clean), or what the released code exempts (paper)",
        choices=("clean", "paper"),
    )
    notice: str | None = option(None, "note printed before the run begins")
    amp: str | None = option(None, "mixed precision on a GPU", choices=(None, "fp16", "bf16"))

    @classmethod
    def default_folder(cls, preset: str) -> str:
        return f"petx-runs/petal-{preset}"

    def check(self) -> None:
        super().check()
        if self.expert_top_k is not None and not 1 <= self.expert_top_k <= max(self.experts, 1):
            raise UserError(f"expert_top_k must be between 1 and experts={self.experts}, got {self.expert_top_k}")
        if self.experts < 0:
            raise UserError(f"experts must not be negative, got {self.experts}")
        if self.ib != "authors" and (self.ib_learnable or self.ib_sign != 1):
            raise UserError(f"ib_learnable and ib_sign are for ib=authors, got ib={self.ib}")
        if not 0 <= self.adapter_dropout < 1:
            raise UserError(f"adapter_dropout must be in [0, 1), got {self.adapter_dropout}")
        for task, metric in self.metrics.items():
            if metric not in metrics.names():
                raise UserError(f"metrics.{task} must be one of {', '.join(metrics.names())}; got {metric!r}")
        if not self.instructions:
            raise UserError("instructions must name at least one template")
        for template in [*self.instructions, *self.eval_instructions, *sum(self.task_instructions.values(), [])]:
            instruction(template, "")
        for name in self.generation:
            if name not in GENERATION:
                raise UserError(f"generation: unknown {name!r}; there are: {', '.join(GENERATION)}")
        if self.width % self.attention_heads:
            raise UserError(f"attention_heads must divide width, got {self.attention_heads} and {self.width}")


parse = functools.partial(settings.parse, Settings)
checked = functools.partial(settings.checked, Settings)
read_preset = functools.partial(settings.read_preset, Settings)
