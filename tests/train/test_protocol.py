"""What the released codes do otherwise, as settings: AdamW of transformers 4.2.1, the last batch, 50 words."""

import math

import pytest
import torch

from petx.data.batches import RoundRobinBatches
from petx.data.instructions import plain
from petx.errors import UserError
from petx.train import stages, vlpet
from petx.train.adamw import ReleasedAdamW
from petx.train.petal import arguments as petal
from petx.train.run import Run
from petx.train.vlpet import arguments
from tests.fixtures import image_text


def literal(start, gradients, *, lr, betas, eps, decay):
    """The update number by number."""
    p, m, v = start, 0.0, 0.0
    for t, g in enumerate(gradients, 1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        p -= lr * math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t) * m / (math.sqrt(v) + eps)
        p -= lr * decay * p
    return p


def stepped(optimizer, parameter, gradients):
    for gradient in gradients:
        parameter.grad = torch.tensor([gradient], dtype=parameter.dtype)
        optimizer.step()
    return parameter.item()


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_released_adamw_by_numbers(decay):
    draw = torch.Generator().manual_seed(0)
    gradients = (1e-5 * torch.randn(40, generator=draw, dtype=torch.float64)).tolist()
    given = dict(lr=0.1, betas=(0.8, 0.99), eps=1e-6)
    parameter = torch.nn.Parameter(torch.tensor([0.7], dtype=torch.float64))
    got = stepped(ReleasedAdamW([parameter], weight_decay=decay, **given), parameter, gradients)
    assert got == pytest.approx(literal(0.7, gradients, decay=decay, **given), rel=1e-12)


@pytest.mark.parametrize("gradient", [1e-3, 1e-5])
def test_it_differs_from_torchs_where_gradients_are_small(gradient):
    moved = []
    for kind in (ReleasedAdamW, torch.optim.AdamW):
        parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        moved.append(stepped(kind([parameter], lr=1.0, eps=1e-6, weight_decay=0.0), parameter, [gradient]))
    bias = math.sqrt(1 - 0.999)  # of the first step
    assert moved[0] / moved[1] == pytest.approx((gradient + 1e-6) / (gradient + 1e-6 / bias), rel=1e-9)


def test_a_closure_and_a_parameter_without_a_gradient():
    one, two = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = ReleasedAdamW([one, two], lr=0.1, weight_decay=0.5)

    def closure():
        loss = (one**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 1.0
    assert one.item() < 0.96 and two.item() == 1.0 and two not in optimizer.state


def test_the_setting_reaches_the_trainer(own, tmp_path):
    made = {}
    for adamw in ("torch", "released"):
        run = Run(vlpet.RECIPE, image_text.settings(own, tmp_path, adamw=adamw, tasks=["gqa"]))
        run.prepare()
        run.load_data()
        model = run.host.pretrained(run.settings, run.data.tokenizer)
        trainer = run.trainer(model, run.training_arguments(tmp_path, steps=2, lr=0.01, seed=0), run.data.train, [4])
        made[adamw] = trainer.create_optimizer()
    groups = {name: optimizer.param_groups[0] for name, optimizer in made.items()}
    assert type(made["released"]) is ReleasedAdamW and type(made["torch"]) is not ReleasedAdamW
    for field in ("lr", "betas", "eps", "weight_decay"):
        assert groups["released"][field] == groups["torch"][field], field
    with pytest.raises(
        UserError, match="adamw=released and trainer.optim say the same thing; give adamw=torch beside it"
    ):
        arguments.checked({"steps": 1, "adamw": "released", "trainer": {"optim": "adamw_torch_fused"}})


def test_the_last_batch_may_be_left_out():
    assert RoundRobinBatches.epoch_steps([10, 8], [4, 4], True) == 4
    batches = list(RoundRobinBatches([10, 8], [4, 4], steps=8, seed=0, drop_last=True))
    assert [len(batch) for batch in batches] == [4] * 8
    seen = {key[:2] for batch in batches[:4] for key in batch}
    assert len(seen) == 16 and {key[:2] for batch in batches[4:] for key in batch} != seen  # others are left out


def test_epochs_count_whole_batches_and_none_is_refused(own, tmp_path):
    run = Run(vlpet.RECIPE, image_text.settings(own, tmp_path, drop_last=True, tasks=["gqa"], epochs=3))
    run.prepare()
    run.load_data()
    (task,) = run.data.train
    assert stages.steps(run, [5]) == 3 * (len(task) // 5) < 3 * math.ceil(len(task) / 5)
    with pytest.raises(UserError, match=r"drop_last leaves no batch of task gqa: 16 examples, batches of 17"):
        stages.steps(run, [17])


def test_a_cleaned_text_has_fifty_words():
    assert plain("One (Two)! " * 40) == " ".join(["one two"] * 25)


def test_the_papers_presets_do_as_released():
    for name in ("paper-bart-image", "paper-t5-image", "paper-bart-video"):
        assert arguments.checked(arguments.read_preset(name)).adamw == "released"
    for name in ("paper-okvqa", "paper-textcaps"):
        assert petal.checked(petal.read_preset(name)).drop_last
    assert arguments.checked({"steps": 1}).adamw == "torch" and not arguments.checked({"steps": 1}).drop_last
