"""The page of the mutants (docs/mutants.md): of every module a table of its own, as of the kernels it was run on.

A module's run takes up to half an hour, and kernels change one at a time; so each table says when it was made and of
which sources, and what has changed since is asked of the page (``python -m tests.emulator.mutants --behind``).
"""

import datetime
import hashlib
import re
from dataclasses import dataclass, field

from tests.emulator import CSRC
from tests.emulator.mutations import modules, mutations, of_cpu, operations

SURVIVES = "SURVIVES"
HEAD = """# Mutants of the kernels

Made with `python -m tests.emulator.mutants`, a module at a time, and joined with `--join`; [kernels.md](kernels.md)
says how. Of each mutant the first check that killed it, and what it said; line numbers are those of the run. A table is
of the sources that it names (`earlier`: made before tables named them), but for rows that end with "(earlier)", which
are of those before; `python -m tests.emulator.mutants --behind` says which modules have changed since.
"""
EARLIER = " (earlier) |"
TABLE = "| mutant | file | killed by | which says |\n| --- | --- | --- | --- |\n"
SECTION = re.compile(
    r"^## (\w+)\n\n(\S+): \d+ mutants, \d+ killed; sources `(\w+)`(?:, \d+ before)?\.\n\n"
    + re.escape(TABLE)
    + r"((?:\| .*\n)*)",
    re.MULTILINE,
)


@dataclass
class Section:
    """What a run of a module's mutants found: its day, the sources' digest, and mutant -> the rest of its row."""

    module: str
    day: str
    sources: str
    rows: dict[str, str] = field(default_factory=dict)

    def add(self, mutation, found):
        check, said = found or (SURVIVES, "")
        said = said if len(said) < 150 else said[:147] + "..."
        self.rows[mutation.name] = f"`{mutation.file}` | {check or 'any'} | {said.replace('|', '/')} |"
        return f"| {mutation.name} | {self.rows[mutation.name]}"

    @property
    def survivors(self):
        return [name for name, rest in self.rows.items() if f" | {SURVIVES} | " in rest]

    @property
    def current(self):
        """The mutants that were run on these sources."""
        return {name for name, rest in self.rows.items() if not rest.endswith(EARLIER)}

    def put_before(self, other):
        """Takes the rows of a run before: as they are if it was on the same sources, else those that are listed yet."""
        if self.sources == other.sources:
            self.rows = other.rows | self.rows
            return
        listed = {mutation.name for mutation in mutations(modules()[self.module])}
        for name, rest in other.rows.items():
            if name in listed - set(self.rows):
                self.rows[name] = rest if rest.endswith(EARLIER) else rest.removesuffix(" |") + EARLIER

    def __str__(self):
        count, killed = len(self.rows), len(self.rows) - len(self.survivors)
        before = f", {count - len(self.current)} before" if len(self.current) < count else ""
        said = f"{self.day}: {count} mutants, {killed} killed; sources `{self.sources}`{before}."
        rows = "".join(f"| {name} | {rest}\n" for name, rest in self.rows.items())
        return f"## {self.module}\n\n{said}\n\n{TABLE}{rows}"


def page_of(sections):
    return "\n".join([HEAD, *map(str, sections)])


def read(text):
    """The sections of a page by their modules."""
    found = {}
    for module, day, sources, table in SECTION.findall(text):
        rows = (line[2:].split(" | ", 1) for line in table.splitlines())
        found[module] = Section(module, day, sources, dict(rows))
    return found


def joined(pages):
    """The pages' sections: of a module the last one, to which those before it add their rows."""
    found = {}
    for page in pages:
        for name, section in read(page).items():
            if name in found:
                section.put_before(found[name])
            found[name] = section
    return [found[name] for name in sorted(found)]


def of_today(section, name, module):
    """The section if it is of today's sources, else an empty one."""
    today = digest(module)
    if section is None or section.sources != today:
        return Section(name, str(datetime.date.today()), today)
    return section


def never_run_first(chosen, section, before):
    """Of ``chosen`` mutations those that the section has not killed; first those that no table has."""
    left = [mutation for mutation in chosen if mutation.name not in section.current - set(section.survivors)]
    return sorted(left, key=lambda mutation: before is not None and mutation.name in before.rows)


def digest(module):
    """Of the kernels that a module changes: those of its operations and what they may include."""
    state = hashlib.sha256()
    if of_cpu(module):
        folders = [f"cpu/{path.name}" for path in sorted((CSRC / "cpu").iterdir())]
    else:
        folders = [*(f"cuda/{name}" for name in operations(module)), "cuda/common"]
    for folder in (*folders, "kernels"):
        for path in sorted((CSRC / folder).glob("*.*")):
            state.update(path.name.encode() + b"\0" + path.read_bytes())
    return state.hexdigest()[:12]


def behind(page):
    """A line for every module whose table is missing, of other sources, or of other mutants than today's."""
    sections = read(page)
    for name, module in modules().items():
        if name not in sections:
            yield f"{name}: not run"
            continue
        listed, seen = {mutation.name for mutation in mutations(module)}, set(sections[name].rows)
        reasons = ["its kernels have changed"] if sections[name].sources != digest(module) else []
        reasons += [f"{len(listed - seen)} mutants are not in its table"] if listed - seen else []
        before = listed & seen - sections[name].current
        reasons += [f"{len(before)} were run on earlier ones"] if before else []
        reasons += [f"{len(seen - listed)} of its table are listed no more"] if seen - listed else []
        if reasons:
            yield f"{name} ({sections[name].day}): {', '.join(reasons)}"
