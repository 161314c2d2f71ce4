"""A hook of mkdocs.yml: pages that are made of other files of the repository, and links out of docs/ that lead to them.

Examples, benchmarks, the change log, the page for contributors and the usage of the command line are written
once, where they belong; here they become pages of the site. No package is needed until mkdocs calls.
"""

import ast
import json
import logging
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
"""The target of a Markdown link, and its anchor."""
LANGUAGES = {".py": "python", ".cpp": "cpp"}
ABOUT = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
log = logging.getLogger("mkdocs.hooks.docs_site")


def sources() -> dict[str, str]:
    """Return {file of the repository: page of the site that it becomes}."""
    pages = {path.relative_to(ROOT).as_posix(): path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    for folder in ("examples", "benchmarks"):
        pages |= {f"{folder}/{path.name}": f"{folder}/{path.name}" for path in (ROOT / folder).glob("*.md")}
    for path in (ROOT / "examples").iterdir():
        if path.suffix in LANGUAGES:
            pages[f"examples/{path.name}"] = f"examples/{path.name}.md"
    return pages | ABOUT | {"README.md": "index.md", "src/spequant/app/commands/table.py": "commands.md"}


def extra_pages() -> dict[str, str]:
    """Return {page: Markdown} of the pages that are no file of docs/."""
    extra = {}
    for source, page in sources().items():
        path = ROOT / source
        if page == "commands.md":
            extra[page] = commands()
        elif path.suffix in LANGUAGES:
            extra[page] = example(path)
        elif not (DOCS / page).is_file():
            extra[page] = path.read_text()
    return extra


def example(path: Path) -> str:
    """Return the page of a script: its docstring, then its code, in which comments between blank lines are text."""
    title = f"# {path.stem.replace('_', ' ').capitalize()}\n\n`examples/{path.name}`\n\n"
    text = path.read_text()
    if path.suffix != ".py":
        return f"{title}{fence(text, LANGUAGES[path.suffix])}"
    tree = ast.parse(text)
    about = ast.get_docstring(tree) or ""
    paragraphs = [fence(p, "text") if p.startswith("python ") else p for p in about.split("\n\n")]
    code = "\n".join(text.splitlines()[tree.body[0].end_lineno :])
    parts = re.split(r"\n\n((?:# .*\n)+)", code)
    for i, part in enumerate(parts):
        is_comment = i % 2
        paragraphs.append(re.sub(r"^# ", "", part.strip(), flags=re.M) if is_comment else fence(part, "python"))
    return title + "\n\n".join(paragraphs) + "\n"


def commands() -> str:
    """Return the page of the command line: the commands, and the recipes that they know."""
    if str(ROOT / "src") not in sys.path:
        sys.path.append(str(ROOT / "src"))
    from spequant.app.commands.table import COMMANDS  # which imports no package

    recipes = json.loads((ROOT / "src/spequant/app/commands/index.json").read_text())["recipes"]
    usage = {f"spequant {c.name} {c.words}".strip(): c.about for c in COMMANDS.values()}
    more = (
        "`spequant help COMMAND` says what a command takes, `spequant help train RECIPE` what a recipe holds. Help and "
        "completion answer at once, without torch. More: [the files of a run](runs.md), [recipes](recipes.md), "
        "[studies](studies.md)."
    )
    names = {name: recipe["about"] for name, recipe in recipes.items()}
    return f"# Command line\n\n{table('command', usage)}\n\n{more}\n\n## Recipes\n\n{table('recipe', names)}\n"


def table(head: str, rows: dict[str, str]) -> str:
    """Return a table of Markdown with `head` above its first column."""
    lines = [f"| `{name}` | {about} |" for name, about in rows.items()]
    return "\n".join([f"| {head} | what it is |", "|---|---|", *lines])


def fence(code: str, language: str) -> str:
    """Return `code` as a block of Markdown."""
    return f"```{language}\n{code.strip()}\n```"


def fill(nav: Any) -> Any:
    """Return mkdocs' `nav` with "folder/*" replaced by all pages of the folder, its index first, then by name."""
    if isinstance(nav, dict):
        return {title: fill(entry) for title, entry in nav.items()}
    if not isinstance(nav, list):
        return nav
    entries = []
    for entry in nav:
        if isinstance(entry, str) and entry.endswith("/*"):
            pages = [p for p in sources().values() if posixpath.dirname(p) == entry.removesuffix("/*")]
            entries += sorted(pages, key=lambda p: (posixpath.basename(p) not in ("index.md", "README.md"), p))
        else:
            entries.append(fill(entry))
    return entries


def relink(markdown: str, page: str) -> str:
    """Return the text of `page` with links to files of the repository that lead to their pages of the site."""
    pages = sources()
    source = next(s for s, p in pages.items() if p == page and s != "README.md")

    def place(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        if re.match(r"[a-z]+:", target):
            return match[0]
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / file).exists():
            return match[0]  # a dead link, of which mkdocs itself warns
        if file not in pages and not file.startswith("docs/"):
            log.warning("%s links to %s, which is not on the site", source, file)
        place = pages.get(file, file.removeprefix("docs/"))
        return posixpath.relpath(place, posixpath.dirname(page) or ".") + anchor

    return LINK.sub(place, markdown)


def on_config(config: Any) -> Any:
    """Fill in the navigation."""
    config.nav = fill(config.nav)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made here."""
    from mkdocs.structure.files import File

    for page, text in extra_pages().items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Make links out of docs/ lead to pages of the site."""
    return relink(markdown, page.file.src_uri)
