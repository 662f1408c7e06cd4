"""What a call would launch on a GPU, asked without one (csrc/cuda/<op>/plan.h)."""

import pytest

from petx import ops
from petx.commands import info

pytestmark = pytest.mark.skipif(ops._C is None, reason="needs the compiled library")


def plan(operation, dtype="bfloat16", architecture=90, **sizes):
    return ops._C.cuda_plan(operation, dtype, sizes, architecture)


def test_every_operation_has_one():
    assert sorted(ops._C.cuda_usual_sizes()) == ops._C.build_info()["operations"]
    for stem in ops._C.cuda_usual_sizes():
        answer = plan(stem)
        assert answer["kernel"] and answer["why"] and min(answer["grid"]) >= 1
        assert f"{answer['kernel']} at " in info.as_text(info.gather())


@pytest.mark.parametrize(
    ("rows", "stacked", "kernel"),
    [(4095, 384, "fused"), (4096, 384, "hybrid"), (10**6, 191, "fused"), (8192, 192, "hybrid")],
)
def test_mixture_is_hybrid_from_many_rows_and_ranks_on(rows, stacked, kernel, monkeypatch):
    monkeypatch.delenv("PETX_EXPERT_MIXTURE", raising=False)
    answer = plan("expert_mixture", rows=rows, stacked=stacked)
    assert answer["kernel"] == kernel and str(stacked if stacked < 192 else rows) in answer["why"]


@pytest.mark.parametrize("kernel", ["fused", "hybrid"])
def test_mixture_obeys_the_environment(kernel, monkeypatch):
    monkeypatch.setenv("PETX_EXPERT_MIXTURE", kernel)
    assert plan("expert_mixture")["kernel"] == kernel


@pytest.mark.parametrize(
    ("rows", "grid"), [(1024, (16, 12)), (4112, (65, 3)), (64, (1, 36)), (28000, (438, 3)), (8, (1, 36))]
)
def test_few_rows_share_the_columns_of_an_update(rows, grid):
    """A projection's results have blocks of their own: of three, three a block of rows where no columns are shared."""
    answer = plan("mode_update", rows=rows)
    assert answer["grid"] == grid
    assert answer["kernel"] == ("column shares" if grid[1] > 3 else "whole rows")
    assert "for each of 3 projections" in answer["why"]


@pytest.mark.parametrize(
    ("sizes", "grid"), [({}, (438, 3)), ({"rows": 1024}, (16, 12)), ({"rows": 1, "heads": 4}, (1, 12))]
)
def test_few_rows_share_the_columns_of_a_site(sizes, grid):
    answer = plan("gated_adapter", **sizes)
    assert answer["grid"] == grid
    assert answer["kernel"] == ("column shares" if grid[1] > 1 else "whole rows")


def test_a_site_passes_over_rows_for_what_needs_all_columns():
    passes = {
        (granularity, norm): plan("gated_adapter", granularity=granularity, norm=norm)["why"].partition("; then ")[2][
            :8
        ]
        for granularity in range(5)
        for norm in (0, 1)
    }
    without = [key for key, words in passes.items() if not words]
    assert without == [(0, 0), (1, 0), (3, 0)]
    assert [key for key, words in passes.items() if words == "two pass"] == [(4, 0), (4, 1)]


@pytest.mark.parametrize(
    ("sizes", "down", "out"),
    [
        (dict(rows=1024), "64 x 64 in 6", "64 x 64 in 1"),
        (dict(rows=4112), "64 x 64 in 2", "128 x 64 in 1"),
        (dict(rows=28000), "128 x 64 in 1", "128 x 64 in 1"),
        (dict(rows=1024, d_in=1408, count=2), "64 x 64 in 8", "64 x 64 in 4"),
        (dict(rows=2048, d_in=4096, d_out=4096, count=1), "128 x 64 in 8", "128 x 64 in 8"),
        (dict(rows=64, d_in=64, d_out=64), "64 x 64 in 1", "64 x 64 in 1"),
    ],
    ids=str,
)
def test_few_rows_split_the_depth_of_an_update(sizes, down, out):
    """Of x U^T, whose parts the next launch adds up anyway, and of dy V where that saves more than a launch."""
    why = plan("mode_update", **sizes)["why"]
    for product, words in (("x U^T", down), ("dy V", out)):
        pieces = "piece" if words.endswith("in 1") else "splits of its depth"
        assert f"{product} by tiles of {words} {pieces}" in why


def test_low_ranks_of_many_rows_go_by_strips():
    words = "strips of 64 rows"
    assert words in plan("expert_mixture", stacked=64, gated=1)["why"]
    assert words not in plan("expert_mixture", stacked=64)["why"]  # nobody between the products makes the images
    for other in (dict(stacked=65), dict(stacked=64, rows=2047), dict(stacked=64, dtype="float32")):
        assert words not in plan("expert_mixture", gated=1, **other)["why"]
    words = "keep in registers"
    assert words in plan("cp_reconstruct")["why"]
    for other in (dict(rank=65), dict(modules=3), dict(dtype="float32")):
        assert words not in plan("cp_reconstruct", **other)["why"]


@pytest.mark.parametrize(
    ("sizes", "wide"),
    [
        ({}, "64 x 128, down by tiles of 128 x 96, dS up by tiles of 128 x 96, gradients by tiles of 128 x 96"),
        (
            dict(r=192, r_g=192),
            "64 x 128, down by tiles of 128 x 96, dS up by tiles of 128 x 96, gradients by tiles of 128 x 96",
        ),
        (
            dict(r=64, r_g=64),
            "64 x 128, down by tiles of 128 x 64, dS up by tiles of 128 x 64, gradients by tiles of 128 x 64",
        ),
        (dict(rows=1024), "64 x 64, down by tiles of 64 x 64, dS up by tiles of 64 x 64, gradients by tiles of 128 x "),
        (dict(rows=512), "64 x 64, down by tiles of 64 x 64, dS up by tiles of 64 x 64, gradients by tiles of 64 x 64"),
    ],
    ids=str,
)
def test_many_rows_take_wide_tiles(sizes, wide):
    """A rank of 96 or 192 by tiles of 96 ranks; few rows make too few blocks of such tiles."""
    assert f"up by tiles of {wide}" in plan("gated_adapter", **sizes)["why"]


def test_other_types_and_calls_have_no_wide_tiles():
    for dtype in ("float32", "float64"):
        assert "128" not in plan("gated_adapter", dtype)["why"].replace("28000", "")
    assert "by tiles of 64 x 128" in plan("mode_update")["why"] and "64 x 64" in plan("mode_update", rows=64)["why"]
    many = dict(stacked=64, rows=16_384)
    assert (
        "64 x 128" in plan("expert_mixture", **many)["why"]
        and "64 x 64" in plan("expert_mixture", "float32", **many)["why"]
    )


@pytest.mark.parametrize(
    ("wanted", "words"),
    [("1", ("64 x 64", "64 x 64")), ("2", ("64 x 128", "128 x 64")), ("3", ("64 x 128", "128 x 96"))],
)
def test_tiles_obey_the_environment(wanted, words, monkeypatch):
    monkeypatch.setenv("PETX_CUDA_WIDE", wanted)
    for rows in (20, 28_000):
        assert f"up by tiles of {words[0]}, down by tiles of {words[1]}" in plan("gated_adapter", rows=rows)["why"]
    assert "up by tiles of 64 x 64, down by tiles of 64 x 64" in plan("gated_adapter", "float32")["why"]


def test_table_holds_240_modules():
    assert plan("cp_reconstruct", modules=240)["grid"][1] == plan("cp_reconstruct", modules=241)["grid"][1] == 240
    assert "2 launches" in plan("cp_reconstruct", modules=241)["why"]


def test_dtype_names_its_units():
    for dtype, words in {"float32": "plain", "float64": "plain", "bfloat16": "matrix", "float16": "matrix"}.items():
        assert words in plan("gated_adapter", dtype)["why"]


def test_old_cards_take_the_reference():
    answer = plan("mode_update", architecture=75)
    assert answer["kernel"] == "reference" and "8.0" in answer["why"] and "7.5" in answer["why"]


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="no operation is called lora"):
        plan("lora")
    with pytest.raises(ValueError, match="mode_update has no size width; it has count, d_in, d_out, rank, rows"):
        plan("mode_update", width=3)
    with pytest.raises(ValueError, match="dtype must be .* got int8"):
        plan("mode_update", "int8")


@pytest.mark.parametrize(
    ("sizes", "said"), [(dict(heads=0), "heads must be at least 1"), (dict(rows=-1), "rows must be")]
)
def test_sizes_that_cannot_be_are_refused(sizes, said):
    with pytest.raises(ValueError, match=said):
        plan("gated_adapter", **sizes)


LARGE = dict(rows=2**31, d=2**20, width=2**20, d_in=2**20, d_out=2**20, stacked=2**16, modes=5_000_000, modules=100_000)


@pytest.mark.parametrize("stem", ops._C.cuda_usual_sizes() if ops._C else [])
def test_grids_stay_within_what_a_gpu_takes(stem):
    """65,535 blocks on the second axis: rows, and the slices of a core, lie on the first."""
    for name in ops._C.cuda_usual_sizes()[stem]:
        large = 4096 if name == "rank" else LARGE.get(name)
        if large is not None:
            x, y = plan(stem, **{name: large})["grid"]
            assert x < 2**31 and y <= 65_535, name


@pytest.mark.parametrize("stem", ops._C.cuda_usual_sizes() if ops._C else [])
@pytest.mark.parametrize("splits", ["", "3"])
def test_sizes_of_zero_have_a_plan(stem, splits, monkeypatch):
    """Of which nothing is launched; that a number of splits is asked for divides nothing by none."""
    monkeypatch.setenv("PETX_CUDA_SPLITS", splits)
    for name in {"rows", "width", "d"} & ops._C.cuda_usual_sizes()[stem].keys():
        assert plan(stem, **{name: 0})["why"], name


def test_options_among_the_sizes_are_shown_by_their_words():
    assert ", granularity large, " in info.as_text(info.gather())
    small = info._OPTIONS["granularity"].index("small")
    assert "two passes" in plan("gated_adapter", granularity=small)["why"]
    assert "two passes" not in plan("gated_adapter", granularity=small - 1)["why"]
    assert plan("mode_cores", diagonal=info._OPTIONS["diagonal"].index("yes"))["kernel"] == "diagonal"
