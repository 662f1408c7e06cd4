"""A sample of the mutations (python -m tests.emulator.mutants runs all of them, docs/mutants.md is its report)."""

import pytest

from petx import ops
from tests.emulator import cpu_library, mutants, mutants_page
from tests.emulator.mutants import Bench, executes_ptx, noticed
from tests.emulator.mutations import MissingBarrier, modules, mutations, of_cpu, source
from tests.emulator.ptx import why_absent

MODULES = modules()
# Which compile in seconds; a sample of the others is taken before a release.
QUICK = ("mode_cores", "mode_update")
SAMPLED = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.nightly)
    for name in MODULES
    if not of_cpu(MODULES[name])
]


@pytest.mark.parametrize("name", MODULES)
def test_every_mutation_finds_its_place(name):
    """Else a kernel was changed and its mutations were not."""
    for mutation in mutations(MODULES[name]):
        text = source(MODULES[name], mutation.file).read_text()
        assert mutation.apply(text) != text


@pytest.mark.slow
@pytest.mark.skipif(ops._C is None, reason="needs the compiled library's operators")
@pytest.mark.parametrize("name", SAMPLED)
def test_sample_is_noticed(name, tmp_path):
    """Of each module a missing barrier, or its first mutation where it has none. The CPU's would take a whole build."""
    module = MODULES[name]
    if executes_ptx(module) and why_absent():
        pytest.skip(why_absent())
    found = mutations(module)
    chosen = next((mutation for mutation in found if isinstance(mutation, MissingBarrier)), found[0])
    library = Bench(module, tmp_path).library("mutant", chosen)
    assert noticed(module, library), f"{chosen.name} goes unnoticed"


def section(name, module, *rows, sources=None):
    made = mutants_page.Section(name, "2026-01-02", sources or mutants_page.digest(module))
    for mutation, found in rows:
        made.add(mutation, found)
    return made


def test_page_is_read_as_it_was_written():
    module = MODULES["mode_cores"]
    first, second, third = mutations(module)[:3]
    old = section("mode_cores", module, (first, ("a case", "says | so")), (second, None))
    new = section("mode_cores", module, (second, ("other", "it")), (third, ("", "not done")))
    tiles = section("tiles", MODULES["tiles"], (mutations(MODULES["tiles"])[0], ("a", "b")), sources="0" * 12)
    assert old.survivors == [second.name]
    [joined, untouched] = mutants_page.joined(map(mutants_page.page_of, ([old, tiles], [new])))
    assert str(untouched) == str(tiles)
    assert list(joined.rows) == [first.name, second.name, third.name] and not joined.survivors
    assert "3 mutants, 3 killed" in str(joined)
    old.sources, old.rows["gone"] = "0" * 12, "`a` | b | c |"
    for _ in range(2):  # a row of other sources says so, and once
        [both] = mutants_page.joined(map(mutants_page.page_of, ([old], [new])))
        assert list(both.rows) == [second.name, third.name, first.name]
        assert both.rows[first.name].endswith("says / so (earlier) |") and both.current == {second.name, third.name}
        assert "3 mutants, 3 killed" in str(both) and ", 1 before." in str(both)
        old = both
        old.sources = "1" * 12


def test_a_run_goes_on_where_it_was_broken_off():
    """What it has killed is not run again; what no table has comes first."""
    module = MODULES["mode_cores"]
    first, second, third, fourth = mutations(module)[:4]
    table = section("mode_cores", module, (first, ("a case", "says so")), (second, None))
    assert mutants_page.of_today(table, "mode_cores", module) is table
    assert mutants_page.never_run_first([first, second, third], table, None) == [second, third]
    assert mutants_page.never_run_first([second, third, fourth], table, table) == [third, fourth, second]
    table.sources = "0" * 12
    assert not mutants_page.of_today(table, "mode_cores", module).rows
    assert not mutants_page.of_today(None, "mode_cores", module).rows


def test_page_says_what_it_is_behind():
    of = {
        name: section(name, module, *((m, ("a", "b")) for m in mutations(module))) for name, module in MODULES.items()
    }
    assert not list(mutants_page.behind(mutants_page.page_of(of.values())))
    of["tiles"].sources = "0" * 12
    of["mode_cores"].rows.pop(mutations(MODULES["mode_cores"])[0].name)
    of["mode_update"].rows["gone"] = "`a` | b | c |"
    moved = mutations(MODULES["inline_ptx"])[0]
    del of["inline_ptx"].rows[moved.name]
    of["inline_ptx"].put_before(section("inline_ptx", MODULES["inline_ptx"], (moved, ("a", "b")), sources="0" * 12))
    del of["cp_reconstruct"]
    assert list(mutants_page.behind(mutants_page.page_of(of.values()))) == [
        "cp_reconstruct: not run",
        "inline_ptx (2026-01-02): 1 were run on earlier ones",
        "mode_cores (2026-01-02): 1 mutants are not in its table",
        "mode_update (2026-01-02): 1 of its table are listed no more",
        "tiles (2026-01-02): its kernels have changed",
    ]


def test_page_counts_what_it_lists():
    text = mutants.PAGE.read_text()
    assert text == mutants_page.page_of(mutants_page.joined([text]))


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (
            "....F\nFAILED tests/operations/test_x.py::test_y[a-b] - assert 1 == 2\n1 failed",
            ("test_y[a-b]", "assert 1 == 2"),
        ),
        ("F\nFAILED tests/operations/test_x.py::test_y\n1 failed", ("test_y", "its assertion fails")),
        ("ERROR tests/operations/test_x.py - ImportError: no\n1 error", ("", "ends with status 2: 1 error")),
        (
            "Fatal Python error: Segmentation fault\n",
            ("", "ends with status 2: Fatal Python error: Segmentation fault"),
        ),
    ],
)
def test_word_of_pytest(output, said):
    assert cpu_library.said_by(output, 2) == said
