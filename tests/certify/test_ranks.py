"""The processes of one training: one certifies, and all take the same path."""

import multiprocessing
import os
import socket
import time

import pytest
import torch

from petx import ops
from petx.certify import cards as machine
from petx.certify import certificate, choice, lookup, ranks
from petx.certify.choice import CertificateWarning
from tests.certify.fake import H100, MIG, T4, OnGPU

X = OnGPU(torch.bfloat16, 8, 512, 768)


COLLECTIVES = """all_reduce reduce broadcast all_gather all_gather_into_tensor all_gather_object broadcast_object_list
gather scatter reduce_scatter reduce_scatter_tensor all_to_all all_to_all_single barrier monitored_barrier send recv
isend irecv new_group init_process_group""".split()


def never(*_, **__):
    raise AssertionError("a collective")


def one_spawned(rank, world, results):
    """A process that no launcher has told anything, with torch's process group; it may call no collective."""
    for name in COLLECTIVES:
        setattr(torch.distributed, name, never)
    group = {"is_initialized": True, "get_rank": rank, "get_world_size": world}
    for name, value in group.items():
        setattr(torch.distributed, name, lambda *_, value=value: value)
    results.put((rank, ops.takes("mode_update", X), machine.cards.started))


def one_rank(rank, world, late, results, local_world=None, device=0):
    """A process of a run, which comes ``late`` seconds after the others to its first use; it may call no collective."""
    for name in COLLECTIVES:
        setattr(torch.distributed, name, never)
    socket.socket = never
    os.environ |= {"WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": "29500"}
    os.environ["LOCAL_WORLD_SIZE"] = str(local_world or world)
    time.sleep(late)
    tensor = OnGPU(torch.bfloat16, 8, 512, 768, device=device)
    results.put((rank, ops.takes("mode_update", tensor), machine.cards.started))


def run(world, late=(), local_world=None, each_its_card=False):
    """Rank -> (whether it takes the kernel, children that it started)."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    late = dict(enumerate(late))
    processes = [
        context.Process(
            target=one_rank, args=(rank, world, late.get(rank, 0), results, local_world, rank * each_its_card)
        )
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    return {rank: (taken, started) for rank, taken, started in found}


def test_the_first_of_a_node_certifies_and_all_take_the_kernels(cards):
    cards.script = ("fake_child.py", "slow", 0.5)
    assert run(3) == {0: (True, 1), 1: (True, 0), 2: (True, 0)}


@pytest.mark.parametrize(
    ("seconds", "wait", "found"), [(0.5, 30, {0: (True, 1), 1: (True, 0)}), (3, 0.5, {0: (False, 1), 1: (False, 0)})]
)
def test_processes_that_were_spawned(cards, monkeypatch, seconds, wait, found):
    """As torch.multiprocessing.spawn makes them; a certificate that comes too late is for the next run."""
    monkeypatch.setattr(lookup, "WAIT", wait)
    cards.script = ("fake_child.py", "slow", seconds)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=one_spawned, args=(rank, 2, results)) for rank in range(2)]
    for process in processes:
        process.start()
    said = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert {rank: (taken, started) for rank, taken, started in said} == found


def test_all_take_the_reference_if_one_gave_up_waiting(cards, monkeypatch):
    """The first comes so late that another has decided; its own certificate is for the next run."""
    monkeypatch.setattr(lookup, "WAIT", 0.5)
    assert run(3, late=(2.0, 0, 0)) == {0: (False, 1), 1: (False, 0), 2: (False, 0)}
    assert len(list(certificate.folder().glob("*.json"))) == 1


def test_nobody_is_waited_for_without_end(cards, monkeypatch):
    """A rank that never uses the card stops no other: the one that is here decides by itself."""
    monkeypatch.setattr(lookup, "WAIT", 0.5)
    results = multiprocessing.get_context("fork").Queue()
    alone = multiprocessing.get_context("fork").Process(target=one_rank, args=(1, 2, 0, results))
    alone.start()
    assert results.get(timeout=30) == (1, False, 0)
    alone.join()


def test_all_take_the_kernels_of_a_certificate_that_is_there(cards):
    ops.takes("mode_update", X)
    choice.forget()
    assert {taken for taken, _ in run(3, late=(1.0, 0, 0)).values()} == {True}


def test_a_late_comer_keeps_to_the_reference(cards, monkeypatch):
    """The certificate is there when the last comes, and the run goes without it."""
    monkeypatch.setattr(lookup, "WAIT", 0.5)
    assert {taken for taken, _ in run(3, late=(1.5, 0, 3.5)).values()} == {False}


def test_a_card_of_no_use_to_one_is_of_no_use_to_all(cards):
    cards.script = ("fake_child.py", "no-memory")
    found = run(2)
    assert {taken for taken, _ in found.values()} == {False}


def test_cards_of_one_kind_share_a_certificate(cards):
    cards.cards = (H100, H100, T4)  # the third is no rank's
    assert run(2, each_its_card=True) == {0: (True, 1), 1: (True, 0)}


@pytest.mark.parametrize("other", [MIG, T4], ids=["MIG", "T4"])
@pytest.mark.parametrize("certified", [False, True])
def test_cards_of_several_kinds_all_take_the_reference(cards, other, certified):
    """Each has a certificate, perhaps, and one could say what the other does not."""
    cards.cards = (H100, other)
    for index in (0, 1) if certified else ():
        ops.takes("mode_update", OnGPU(torch.bfloat16, 8, 512, 768, device=index))
    choice.forget()
    started = cards.started
    assert run(2, each_its_card=True) == {0: (False, started), 1: (False, started)}


def test_several_kinds_are_said_and_may_be_pinned(cards, monkeypatch):
    cards.cards = (H100, MIG)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.warns(CertificateWarning, match="cards of several kinds.*PETX_CUDA_KERNELS=1 takes the kernels on all"):
        assert not ops.takes("mode_update", X)
    choice.forget()
    monkeypatch.setenv("PETX_CUDA_KERNELS", "1")
    assert ops.takes("mode_update", X) and cards.started == 0


def test_several_nodes_certify_nothing(cards, monkeypatch):
    found = run(2, local_world=1)
    assert found == {0: (False, 0), 1: (False, 0)}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.warns(CertificateWarning, match="set PETX_CERTIFICATE=FILE on every node"):
        assert not ops.takes("mode_update", X)


def test_several_nodes_take_a_certificate_that_they_have(cards):
    ops.takes("mode_update", X)
    choice.forget()
    assert run(2, local_world=1) == {0: (True, 1), 1: (True, 1)}  # the child of before


def test_old_runs_are_cleared_away(cards, monkeypatch):
    folder = certificate.folder() / "runs"
    folder.mkdir(parents=True)
    (folder / "old").write_text("reference")
    os.utime(folder / "old", (0, 0))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ranks._decision("certificate") == "certificate" and ranks._decision("reference") == "certificate"
    assert not (folder / "old").exists()


def test_without_a_folder_each_rank_has_its_own(cards, read_only, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.warns(CertificateWarning, match="cannot be kept"):
        assert ops.takes("mode_update", X)
