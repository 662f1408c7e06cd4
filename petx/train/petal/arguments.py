"""Settings of ``petx train petal``."""

import dataclasses
import functools
from typing import ClassVar

from petx import metrics, tasks
from petx.data.augment import KINDS as AUGMENTATIONS
from petx.data.instructions import instruction
from petx.errors import UserError
from petx.options import BEAMS, checked_value, option
from petx.tasks.easy_vqa import LESSONS
from petx.train import settings
from petx.train.settings import Common, with_baselines

GENERATION: dict[str, tuple[type, dict]] = {
    "num_beams": (int, BEAMS),
    "max_new_tokens": (int, dict(least=1)),
    "min_new_tokens": (int, dict(least=0)),
    "length_penalty": (float, {}),
    "repetition_penalty": (float, dict(above=0)),
}
TEMPLATES = dict(kind=list, each=dict(kind=str))


@with_baselines
@dataclasses.dataclass
class Settings(Common):
    """Everything one run of PETAL's recipe depends on."""

    recipe: ClassVar[str] = "petal"
    by_task: ClassVar[tuple] = ("metrics", "task_instructions", "max_target", *Common.by_task)
    of_own_data: ClassVar[tuple] = (*Common.of_own_data, "images_dir", "augment", "metrics", "loss", "clean_captions")
    of_texts: ClassVar[tuple] = (
        *("generation", "instructions", "task_instructions", "eval_instructions", "clean_instructions", "aggregation"),
        *("targets", "loss", "max_target", "lemmatize", *Common.of_texts),
    )

    # data
    data: str = option("easy-vqa", "data set", choices=tasks.kinds("petal"))
    images_dir: str | None = option(
        None, "own data: folder of the image files (default: images in DATA_DIR)", path=True
    )
    augment: str = option(
        "none",
        "own data: augmentation of the training images; released: resized-crop for captions, for questions randaugment",
        choices=AUGMENTATIONS,
    )
    metrics: dict = option({}, "own data: {task: metric}, over the task's own", each=dict(kind=str))
    loss: str = option(
        "task",
        "own data: mean over a batch's tokens, as released, or an example's, then examples; or the task's own",
        choices=("task", "token", "sample"),
    )
    clean_captions: bool = option(
        False, 'own data: captions trained on in lower case, without . ! " ( ) * # : ; ~, at most 50 words, as released'
    )
    lemmatize: bool = option(
        False, "nouns and verbs of generated answers become lemmas, as released for OK-VQA and TextVQA; needs spaCy"
    )
    targets: str = option("sampled", "own data: which answer is trained on", choices=("sampled", "first"))
    instructions: list = option(
        ["{q}"],
        "instruction templates, a YAML list; several: one Q-Former pass each",
        sentences=True,
        each=dict(kind=str),
    )
    task_instructions: dict = option({}, "{task: [templates]}, over instructions", each=TEMPLATES)
    eval_instructions: list = option(
        [], "templates of evaluation, if other than in training", sentences=True, each=dict(kind=str)
    )
    clean_instructions: bool = option(False, "lower case without punctuation, at most 50 words, as released")
    aggregation: str = option(
        "attention_score",
        "how the features of several instructions are aggregated",
        choices=("mean", "attention_score"),
    )
    max_text: int = option(128, "longest instruction in tokens; longer ones lose their beginning", least=1)
    max_target: dict = option(
        {}, "own data: {task: tokens of an answer}, over the task's own", each=dict(kind=int, least=1)
    )
    generation: dict = option({}, f"how answers are generated: {', '.join(GENERATION)}")

    # host
    host: str | None = option(
        None,
        "pretrained InstructBLIP, BLIP-2, LLaVA or another image-text-to-text model with its processor, folder or hub "
        "name (default: a small one pretrained here)",
        path=True,
    )
    dtype: str = option("float32", "own host: type of its weights", choices=("float32", "bfloat16", "float16"))
    language_model: str = option("t5", "small host: its language model", choices=("t5", "llama", "smollm2"))
    width: int = option(96, "small host: width of the Q-Former, and of a t5 or llama", least=1)
    layers: int = option(
        4, "small host: layers of the Q-Former, every other one with cross-attention", least=1, most=1024
    )
    lm_layers: int = option(
        2, "small host: layers of the language model (t5: of encoder and decoder each)", least=1, most=1024
    )
    attention_heads: int = option(4, "small host: attention heads", least=1)
    ffn: int = option(192, "small host: width of the feed-forward layers", least=1)
    queries: int = option(4, "small host: query tokens", least=1)
    lessons: list = option(
        [],
        f"small host: what it is pretrained on, of {', '.join(LESSONS)} (default: all but words with a llama, else all "
        "but match)",
        each=dict(kind=str, choices=tuple(LESSONS)),
    )
    init_std: float = option(0.1, "small host: standard deviation of the Q-Former's initial weights", above=0)

    # PETAL
    form: str = option(
        "factored",
        "the update beside the frozen projections, or every adapted weight written out (threshold on its entries)",
        choices=("factored", "explicit"),
    )
    rank: int = option(16, "rank of the mode approximation", least=1)
    image_rank: int | None = option(
        None, "its rank for the Q-Former's image features, the widest input (default: rank)", least=1
    )
    core: str = option(
        "full", "core tensor, as released, or diagonal, as in the paper's CP", choices=("full", "diagonal")
    )
    threshold: str = option(
        "soft", "gate of the core by the learnable threshold", choices=("none", "soft", "hard", "sigmoid")
    )
    threshold_per_rank: bool = option(False, "a threshold for each of the rank's components")
    adapter_dropout: float = option(0.0, "dropout of the mode approximation, and of LoRA", least=0, below=1)
    shared_mask: bool = option(False, "one dropout mask for the projections of one input")
    experts: int = option(6, "instruction experts; 0: none", least=0)
    expert_rank: int = option(8, "bottleneck of an expert", least=1)
    expert_gate: str = option(
        "token", "gate of the experts: all alike, per token or per sample", choices=("uniform", "token", "sample")
    )
    expert_top_k: int | None = option(None, "experts that a token goes through (default: all)", least=1)
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
    ib_vocabulary: int | None = option(
        None,
        "entries of a target's one-hot (default: the language model's; released: those of T5's tokenizer, 32100)",
        least=1,
    )
    ib_sign: int = option(1, "authors: 1 as released, which lowers I(Z;Y) if κ > 0; or -1", choices=(1, -1))

    # tuning
    arms: list = option(
        ["frozen", "petal", "lora", "adapter", "head", "full"],
        "what to compare; --list shows what there is",
        each=dict(kind=str),
    )
    with_arms: list = option(
        [], "further arms: an ablation, a control, or all 'ablations'", flag="with", each=dict(kind=str)
    )
    lr: float = option(3e-3, "peak learning rate of PETAL", above=0)
    full_vision_norm: bool = option(
        False, "full tuning trains the norm of the image features, too, as released (ln_vision)"
    )
    lr_min: float = option(0.0, "learning rate at the end", least=0)
    lr_warmup: float = option(0.0, "learning rate at the beginning of the warm-up", least=0)
    schedule: str = option(
        "linear", "decay by step, or as released: cosine, by epoch", choices=("linear", "cosine", "cosine-by-epoch")
    )
    warmup: float = option(0.1, "linear warm-up: share of the steps, or their number from 1 on", least=0)
    decay: str = option(
        "clean",
        "weight decay exempts norms and biases (clean), or what the released code exempts (paper)",
        choices=("clean", "paper"),
    )
    notice: str | None = option(None, "note printed before the run begins")

    @classmethod
    def default_folder(cls, preset: str) -> str:
        return f"petx-runs/petal-{preset}"

    def check(self) -> None:
        super().check()
        if self.expert_top_k is not None and not 1 <= self.expert_top_k <= max(self.experts, 1):
            raise UserError(f"expert_top_k must be between 1 and experts={self.experts}, got {self.expert_top_k}")
        if self.ib != "authors" and (self.ib_learnable or self.ib_sign != 1):
            raise UserError(f"ib_learnable and ib_sign are for ib=authors, got ib={self.ib}")
        if self.ib_vocabulary is not None and self.ib in ("off", "variational"):
            raise UserError(f"ib_vocabulary is for ib=authors and corrected, got ib={self.ib}")
        for task, metric in self.metrics.items():
            if metric not in metrics.names():
                raise UserError(f"metrics.{task} must be one of {', '.join(metrics.names())}; got {metric!r}")
        if not self.instructions:
            raise UserError("instructions must name at least one template")
        if self.lessons and (self.host is not None or self.data != "easy-vqa"):
            own = f"data {self.data}" if self.host is None else f"host {self.host}"
            raise UserError(
                f"lessons are what the small host of easy-vqa is pretrained on, got {self.lessons} and {own}"
            )
        if len(set(self.lessons)) < len(self.lessons):
            raise UserError(f"lessons must name each lesson once, got {', '.join(self.lessons)}")
        templates = dict(instructions=self.instructions, eval_instructions=self.eval_instructions)
        templates |= {f"task_instructions.{task}": own for task, own in self.task_instructions.items()}
        for setting, given in templates.items():
            for template in given:
                try:
                    instruction(template, "")
                except UserError as error:
                    raise UserError(f"{setting}: {error}") from None
        for name, value in self.generation.items():
            if name not in GENERATION:
                raise UserError(f"generation: unknown {name!r}; there are: {', '.join(GENERATION)}")
            self.generation[name] = checked_value(f"generation.{name}", value, *GENERATION[name])
        shortest, longest = (self.generation.get(f"{end}_new_tokens") for end in ("min", "max"))
        if shortest is not None and longest is not None and shortest > longest:
            raise UserError(f"generation.min_new_tokens must be at most max_new_tokens={longest}, got {shortest}")
        if self.width % self.attention_heads:
            raise UserError(f"attention_heads must divide width, got {self.attention_heads} and {self.width}")
        if self.language_model == "llama" and self.width // self.attention_heads % 2:
            raise UserError(
                f"width must be an even multiple of attention_heads={self.attention_heads} (llama), got {self.width}"
            )


parse = functools.partial(settings.parse, Settings)
checked = functools.partial(settings.checked, Settings)
read_preset = functools.partial(settings.read_preset, Settings)
