"""What the API site needs beyond mkdocs: pages from the root, and docstrings as Markdown. Named in mkdocs.yml.

Two roles: an mkdocs hook (``on_config`` and its like) and a griffe extension (:class:`Docstrings`).
"""

import ast
import logging
import re
import textwrap
from pathlib import Path
from xml.etree import ElementTree

import griffe
from latex2mathml.converter import convert
from markdown.util import AtomicString
from mkdocs.structure.files import File

LOG = logging.getLogger("mkdocs.hooks.docs_site")
ROOT = Path(__file__).resolve().parents[1]
# An argument's entry that several share ("z_features, x_features: ..."), which the site gives to each of them.
SHARED = re.compile(r"^    (\w+(?:, \w+)+): (.*\n?(?:        .*\n?)*)", re.MULTILINE)
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")  # at the root, where people look for them


def on_config(config):
    """Formulas as MathML, made while the site is built, so that no script has to be loaded."""
    configs = config.mdx_configs
    configs.setdefault("pymdownx.inlinehilite", {})["custom_inline"] = [
        {"name": "math", "class": "math", "format": lambda source, *_: _inline(source)}
    ]
    configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [
        {"name": "math", "class": "math", "format": lambda source, *_, **__: convert(source, display="block")}
    ]
    return config


def _inline(source):
    element = ElementTree.fromstring(convert(source).replace(' xmlns="http://www.w3.org/1998/Math/MathML"', ""))
    for part in element.iter():  # so that no star or underscore of a formula is read as Markdown
        part.text = part.text and AtomicString(part.text)
    return element


def on_files(files, config):
    """Adds the root's pages, as if they lay in docs/, with their links."""
    for name in PAGES:
        text = re.sub(r"\]\(docs/", "](", (ROOT / name).read_text(encoding="utf-8"))
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links of docs/ to the root's pages."""
    return re.sub(rf"\]\(\.\./({'|'.join(map(re.escape, PAGES))})", r"](\1", markdown)


def on_post_page(output, page, config):
    """Warns, which stops a strict build, of a public name that is not on its package's page."""
    if page.file.src_uri.startswith("api/"):
        package = Path(page.file.src_uri).stem
        missing = [name for name in exports(package) if f'id="petx.{package}.{name}"' not in output]
        if missing:
            LOG.warning(f"{page.file.src_uri}: not on the page: {', '.join(missing)}")
    return output


def exports(package):
    """``__all__`` of ``petx.<package>`` as it is written."""
    source = next(
        path for path in (ROOT / "petx" / package / "__init__.py", ROOT / f"petx/{package}.py") if path.exists()
    )
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if (
            isinstance(node, ast.Assign)
            and ast.unparse(node.targets[0]) == "__all__"
            and isinstance(node.value, ast.List)
        ):
            return ast.literal_eval(node.value)
    return []


def to_markdown(text):
    """The reStructuredText that petx's docstrings use (roles, math) as Markdown."""
    text = SHARED.sub(lambda found: "".join(f"    {name}: {found[2]}" for name in found[1].split(", ")), text)
    text = re.sub(r"``(.+?)``", r"`\1`", text, flags=re.DOTALL)
    text = re.sub(r":math:`(.+?)`", lambda found: f"`#!math {' '.join(found[1].split())}`", text, flags=re.DOTALL)
    text = re.sub(r":(?:class|func|meth|mod|data|attr):`~?([\w.]+)`", r"`\1`", text)
    return re.sub(r"^\.\. math::((?: .*)?(?:\n(?:[ \t]+.*)?)*)", _fence, text, flags=re.MULTILINE)


def _fence(found):
    return f"```math\n{textwrap.dedent(found[1]).strip()}\n```\n\n"


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is rendered."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)
