"""What a process chooses at the first use of a card, and from then on."""

import json
import multiprocessing
import os
import re
import warnings

import pytest
import torch

from petx import ops
from petx.certify import api, certificate, choice, lookup
from petx.certify import cards as machine
from petx.certify.certificate import Certificate, Finding
from petx.certify.choice import CertificateWarning, slower
from petx.errors import UserError
from tests.certify.fake import BUILD, H100, MIG, T4, THOR, OnGPU

X = OnGPU(torch.bfloat16, 8, 512, 768)  # 4096 rows
SHORT = OnGPU(torch.bfloat16, 2, 128, 768)  # where the fake child finds eager torch faster


def use(tensor=X, stem="mode_update", rank=None):
    return ops.takes(stem, tensor, rank)


def quiet():
    """Any warning is an error."""
    caught = warnings.catch_warnings()
    caught.__enter__()
    warnings.simplefilter("error", CertificateWarning)
    return caught


def test_a_fresh_user_gets_kernels_without_setting_anything(cards):
    caught = quiet()
    assert use() and use(stem="gated_adapter") and ops.has_kernel("mode_cores", "cuda")
    assert ops.why_absent("mode_update", "cuda") is None
    caught.__exit__(None, None, None)
    assert cards.started == 1  # once, whatever is asked
    (file,) = certificate.folder().glob("*.json")
    assert json.loads(file.read_text())["for"]["card"]["name"] == H100.name
    choice.forget()  # another process
    assert use() and cards.started == 1


def test_a_shape_at_which_the_kernel_is_slower_takes_the_reference(cards):
    assert use(X) and not use(SHORT)
    assert use(X, rank=64) and not use(SHORT, rank=64)


def test_a_choice_is_a_look_up(cards, monkeypatch):
    use()
    monkeypatch.setattr(choice, "_answer", None)  # not called again
    assert use()


def test_the_path_on_a_cpu_asks_nothing(cards):
    assert ops.takes("mode_update", torch.zeros(2, 3))
    assert cards.started == 0 and not choice._answers


def test_a_wrong_kernel_is_refused_in_its_dtype_alone(cards):
    cards.script = ("fake_child.py", "wrong")
    with pytest.warns(CertificateWarning, match="mode_update in bfloat16 .odd: dx: error 3.10e-01"):
        assert not use()
    assert use(OnGPU(torch.float32, 4096, 768)) and use(stem="mode_cores")
    assert not ops.has_kernel("mode_update", "cuda")  # not in every dtype
    said = "it is wrong on this card in bfloat16: odd: dx: error 3.10e-01, torch's own 2.00e-03"
    assert choice.why_not("mode_update", 0, torch.bfloat16) == said
    others = "float32, float16, float64"
    assert ops.why_absent("mode_update", "cuda") == f"{said}; it is right in {others}, where the kernel runs"
    assert choice.why_not("mode_update", 0, torch.float32) is None and ops.why_absent("mode_cores", "cuda") is None
    choice.forget()
    caught = quiet()  # a process says it once
    assert not use() and cards.started == 1  # found wrong, it is not tried again
    caught.__exit__(None, None, None)


@pytest.mark.parametrize("how", ["no-memory", "exclusive", "no-memory-later", "killed", "other-card"])
def test_what_is_unknown_is_not_kept(cards, how):
    cards.script = ("fake_child.py", how)
    with pytest.warns(CertificateWarning, match="could not be certified: .*`petx certify` tries again"):
        assert not use()
    started = cards.started
    assert not use() and cards.started == started  # not a second time in this process
    assert not list(certificate.folder().glob("*"))
    choice.forget()
    cards.script = ("fake_child.py", "right")
    assert use()  # the next process tries again


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (T4, "the kernels need compute capability 8.0, this card has 7.5"),
        (THOR, "was built for 8.0;9.0;10.0;12.0.PTX, which a card of 11.0 cannot run"),
    ],
)
@pytest.mark.parametrize("pin", ["", "1"])
def test_a_card_that_cannot_run_them_takes_the_reference(cards, monkeypatch, card, said, pin):
    monkeypatch.setenv("PETX_CUDA_KERNELS", pin)
    cards.cards = (card,)
    with pytest.warns(CertificateWarning, match=said):
        assert not use()
    assert cards.started == 0 and re.search(said, ops.why_absent("mode_update", "cuda"))


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((8, 0), "8.0", True),
        ((8, 9), "8.0", True),
        ((9, 0), "8.0", False),
        ((9, 0), "8.0+PTX", True),
        ((11, 0), "8.0+PTX;12.0", True),
        ((12, 1), "12.0", True),
        ((8, 0), "8.6", False),
        ((8, 0), "8.6+PTX", False),
        ((9, 0), "9.0a", True),
        ((10, 3), "10.0a", False),
        ((10, 3), "10.0f", True),
        ((12, 0), "10.0f+PTX", False),
    ],
)
def test_images(capability, built, runs):
    assert (machine.unusable(capability, BUILD | {"cuda_architectures": built.split(";")}) is None) == runs


def test_a_check_build_runs_nowhere():
    assert "check build" in machine.unusable((9, 0), BUILD | {"cuda_mode": "check"})
    absent = {"cuda_mode": "absent", "cuda_absent_reason": "no nvcc"}
    assert machine.unusable((9, 0), absent) == "built without CUDA: no nvcc"


@pytest.mark.parametrize(("value", "taken"), [("0", False), ("1", True)])
def test_the_variable_pins(cards, monkeypatch, value, taken):
    monkeypatch.setenv("PETX_CUDA_KERNELS", value)
    caught = quiet()
    assert use(X) == use(SHORT) == taken
    caught.__exit__(None, None, None)
    assert cards.started == 0
    assert (ops.why_absent("mode_update", "cuda") is None) == taken


def test_another_value_is_refused(cards, monkeypatch):
    monkeypatch.setenv("PETX_CUDA_KERNELS", "yes")
    with pytest.raises(UserError, match="PETX_CUDA_KERNELS must be 0 or 1, got 'yes'"):
        use()


@pytest.mark.parametrize("content", ["", "{", '{"format": 1}', "[]", '{"format": 99, "for": {}}', "\x00\x01"])
def test_a_corrupt_certificate_is_ignored_with_a_word(cards, content):
    use()
    (path,) = certificate.folder().glob("*.json")
    path.write_text(content)
    choice.forget()
    with pytest.warns(CertificateWarning, match=f"{path.name}.*ignored"):
        assert use()
    assert cards.started == 2 and certificate.read(path).findings


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "excellent"},
        {"verdict": "wrong", "said": None},
        {"times": [[1, 2, 3]]},
        {"times": [[256, 768, 64, 0.0, 1.0]]},
        {"surprise": 1},
    ],
)
def test_a_finding_that_is_none_is_corrupt(cards, change):
    use()
    (path,) = certificate.folder().glob("*.json")
    values = json.loads(path.read_text())
    values["operations"]["mode_update"]["float32"] |= change
    path.write_text(json.dumps(values))
    with pytest.raises(certificate.Corrupt, match="is no certificate"):
        certificate.read(path)


def test_an_interrupted_write_leaves_the_old_certificate(cards, monkeypatch):
    use()
    (path,) = certificate.folder().glob("*.json")
    before = path.read_text()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        certificate.write(certificate.read(path), path)
    assert path.read_text() == before and [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("what", ["library", "driver", "torch", "memory", "multiprocessors"])
def test_a_change_asks_for_a_new_certificate(cards, fresh, monkeypatch, what):
    use()
    if what == "library":
        (fresh / "_C.so").write_bytes(b"other kernels")
    elif what == "torch":
        monkeypatch.setattr(torch, "__version__", "2.99")
    else:
        changed = {"driver": "590.1, CUDA 13.1", "memory": 40000, "multiprocessors": 114}[what]
        cards.cards = (machine.Card(**vars(H100) | {what: changed}),)
    certificate.library_facts.cache_clear()
    choice.forget()
    assert use() and cards.started == 2


def test_mixed_cards_have_a_certificate_each(cards):
    cards.cards = (H100, T4, H100, MIG)
    assert use(OnGPU(torch.bfloat16, 4096, 768, device=0)) and cards.started == 1
    with pytest.warns(CertificateWarning, match="Tesla T4 .cuda:1"):
        assert not use(OnGPU(torch.bfloat16, 4096, 768, device=1))
    assert use(OnGPU(torch.bfloat16, 4096, 768, device=2)) and cards.started == 1  # the same card as the first
    assert use(OnGPU(torch.bfloat16, 4096, 768, device=3)) and cards.started == 2
    assert len(list(certificate.folder().glob("*.json"))) == 2


def test_the_child_sees_the_parents_card(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-aa, GPU-bb")
    monkeypatch.setenv("PETX_CERTIFICATE", "x")
    command, environment = machine.Cards().child(1)
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-bb" and environment["PETX_CUDA_KERNELS"] == "1"
    assert "PETX_CERTIFICATE" not in environment
    assert machine.Cards().child(0)[1]["CUDA_VISIBLE_DEVICES"] == "MIG-aa"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert machine.Cards().child(3)[1]["CUDA_VISIBLE_DEVICES"] == "3"


def test_nothing_is_certified_beside_a_capture(cards):
    cards.captures = True
    with pytest.warns(CertificateWarning, match="captured.*call petx.certify.certify.. before"):
        assert not use()
    cards.captures = False
    assert not use() and cards.started == 0  # the choice of this process stays
    api.certify(0)
    assert use() and cards.started == 1  # unless it is asked for


def test_a_capture_takes_what_is_known(cards):
    use()
    choice.forget()
    cards.captures = True
    assert use() and cards.started == 1


def test_nothing_is_certified_under_a_sanitizer(cards, monkeypatch):
    monkeypatch.setenv("NV_SANITIZER_INJECTION_PORT_BASE", "1")
    with pytest.warns(CertificateWarning, match="a tool watches this process"):
        assert not use()
    assert cards.started == 0


def test_a_home_that_cannot_be_written(cards, read_only):
    with pytest.warns(CertificateWarning, match="cannot be kept in .*set PETX_CACHE to a folder"):
        assert use()
    assert use() and cards.started == 1  # in memory
    choice.forget()
    assert use() and cards.started == 2


class TestGivenCertificate:
    @pytest.fixture
    def given(self, cards, fresh, monkeypatch):
        path = fresh / "image.json"
        api.made(cards.card(0), path)
        cards.started = 0
        choice.forget()
        monkeypatch.setenv("PETX_CERTIFICATE", str(path))
        return path

    def test_it_is_read(self, given, cards):
        assert use() and cards.started == 0 and not certificate.folder().exists()

    def test_from_a_folder(self, given, cards, monkeypatch):
        folder = given.parent / "several"
        folder.mkdir()
        given.rename(folder / f"{certificate.key_of(certificate.facts_of(cards.card(0)))}.json")
        monkeypatch.setenv("PETX_CERTIFICATE", str(folder))
        assert use() and cards.started == 0

    def test_it_is_never_written(self, given, cards):
        given.write_text("{")
        with pytest.warns(CertificateWarning, match="PETX_CERTIFICATE: .*image.json is no certificate"):
            assert not use()
        assert given.read_text() == "{" and cards.started == 0

    def test_it_does_not_exist(self, given, cards):
        given.unlink()
        with pytest.warns(CertificateWarning, match="image.json, which does not exist; `petx certify --output"):
            assert not use()

    def test_it_is_for_another_card(self, given, cards):
        cards.cards = (MIG,)
        with pytest.warns(CertificateWarning, match="image.json is for another card"):
            assert not use()

    def test_it_serves_an_export_without_a_card(self, given, cards, monkeypatch):
        cards.cards = ()
        assert use()
        choice.forget()
        monkeypatch.setenv("PETX_CERTIFICATE", str(given.parent / "none"))
        with pytest.warns(CertificateWarning, match="no GPU is visible"):
            assert not use()


def race(results):
    """One of two processes that use a card at once."""
    results.put((use(), machine.cards.started))


def test_two_processes_at_once(cards):
    """One certifies, the other waits for it."""
    cards.script = ("fake_child.py", "slow", 1)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=race, args=(results,)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert [taken for taken, _ in found] == [True, True] and sum(started for _, started in found) == 1


def test_a_process_that_waits_too_long_takes_the_reference(cards, monkeypatch):
    monkeypatch.setattr(lookup, "WAIT", 0.3)
    card = cards.card(0)
    lock = certificate.path_of(certificate.facts_of(card)).with_suffix(".lock")
    with certificate.lock(lock):
        assert "another process has been certifying it" in lookup.certified(card, wait=0.3).why
    assert lookup.certified(card).certificate is not None


@pytest.mark.parametrize("holder", ['{"pid": 999999999, "machine": "%s"}', "", "old"])
def test_a_lock_that_was_left_behind(cards, holder):
    lock = certificate.path_of(certificate.facts_of(cards.card(0))).with_suffix(".lock")
    lock.parent.mkdir(parents=True)
    lock.write_text(holder % os.uname().nodename if "%" in holder else holder)
    if "%" not in holder:
        os.utime(lock, (0, 0))
    assert use() and not lock.exists()


def test_the_nearest_shape_decides():
    times = [
        [256, 768, 64, 2.0, 1.0],
        [4096, 768, 64, 1.0, 2.0],
        [4096, 768, 384, 3.0, 2.0],
        [1024, 2048, 64, 1.0, 9.0],
    ]
    assert slower(times, 200, 768, 64) and not slower(times, 5000, 768, 96) and slower(times, 5000, 768, 300)
    assert not slower(times, 5000, 768, None)  # 4 against 4: not slower by more than five per cent
    assert not slower(times, 900, 2000, None)
    assert not slower(times, float("nan"), 0, None)
    assert slower([[1, 1, 1, 1.06, 1.0]], 1, 1, 1) and not slower([[1, 1, 1, 1.04, 1.0]], 1, 1, 1)
    assert not slower([], 1, 1, 1)


def test_memory_alone_is_a_certificate_too():
    found = Certificate({}, {"mode_update": {"bfloat16": Finding("right")}})
    assert choice.of_certificate(found, None).takes("mode_update", torch.bfloat16, 1, 1, None)
    assert not choice.of_certificate(found, None).takes("mode_update", torch.float16, 1, 1, None)


def test_a_card_that_does_not_exist(cards):
    with pytest.raises(UserError, match="device cuda:4 does not exist: there are 1, from cuda:0"):
        api.certify("cuda:4")
    with pytest.raises(UserError, match="device must be a GPU such as cuda:0, got 'cpu'"):
        api.certify("cpu")
    with pytest.raises(UserError, match="device must be a GPU such as cuda:0, got 'fridge'"):
        api.certify("fridge")
    with pytest.raises(UserError, match="operations: there is no 'softmax'; there are cp_reconstruct, "):
        api.certify(0, operations=["softmax"])
    cards.cards = ()
    with pytest.raises(UserError, match="device cuda:0 does not exist: no GPU is visible"):
        api.certify()
    cards.cards = (T4,)
    with pytest.raises(UserError, match="Tesla T4 .cuda:0. cannot be certified: the kernels need"):
        api.certify()
