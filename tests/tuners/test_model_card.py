"""The model card beside a saved adapter names method, counts and settings."""

import pytest
import torch
from peft import get_peft_model

from petx.tuners import describe, load_adapter
from tests.fixtures.peft_method import each

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@each
def test_the_card_tells_method_counts_and_settings(method, tmp_path):
    model = method.tuned()
    for _ in range(2):  # saved again, it stands there once
        model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert card.count(f"# {method.name} adapter\n") == 1 and card.startswith("---\n") and "library_name: peft" in card
    told = [line for line in describe(model).splitlines() if "fused: " not in line]
    assert len(told) < len(describe(model).splitlines())  # how it runs here is not the adapter's
    assert "\n".join(told) in card and "| `rank` | `" in card and "host" not in card.partition("<!-- /petx")[0]
    loaded = load_adapter(method.host(), tmp_path)
    loaded.save_pretrained(tmp_path / "again")
    assert "\n".join(told) in (tmp_path / "again" / "README.md").read_text(encoding="utf-8")


@each
def test_every_adapter_has_its_own_and_a_configuration_alone_has_none(method, tmp_path):
    method.two().save_pretrained(tmp_path)
    assert f"{method.name} adapter 'b'" in (tmp_path / "b" / "README.md").read_text(encoding="utf-8")
    method.config().save_pretrained(tmp_path / "alone")
    assert [path.name for path in (tmp_path / "alone").iterdir()] == ["adapter_config.json"]


@each
def test_a_model_without_memory_is_described_too(method):
    with torch.device("meta"):
        host = method.host()
    assert describe(get_peft_model(host, method.config())).startswith(f"{method.name} adapter")
