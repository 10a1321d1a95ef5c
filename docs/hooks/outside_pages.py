"""MkDocs hook: pages and files of the repository that lie outside ``docs/`` but that its pages link to.

The pages are written for a reader of the repository, so they link to ``../benchmarks/results/engines.md`` or
``../examples/custom_mechanism.py``. Such a file joins the site under its path in the repository, and the links follow.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

#: Pages outside ``docs/`` that are in the navigation.
NAVIGATION = ("CHANGELOG.md", "CONTRIBUTING.md")
# A link to a file, not to another server or within the page: before the target, the target, after it.
_LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")
_FENCED = re.compile(r"(^```.*?^```\s*?$)", flags=re.DOTALL | re.MULTILINE)
_LIST_AFTER_TEXT = re.compile(r"^((?!\s*[-*|>#]|\s*\d+\. )\S.*)\n(?=(?:- |\d+\. ))", flags=re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """Add the outside files that pages link to, and those that such pages link to in turn."""
    root, docs = Path(config["config_file_path"]).parent, Path(config["docs_dir"]).name
    pending = [(f"{docs}/{file.src_uri}", Path(file.abs_src_path)) for file in files.documentation_pages()]
    pending += [(name, root / name) for name in NAVIGATION]
    seen = set()
    while pending:
        place, path = pending.pop()
        if place in seen or place.startswith("..") or not path.is_file():
            continue
        seen.add(place)
        if not place.startswith(f"{docs}/"):
            files.append(File.generated(config, place, abs_src_path=str(path)))
        if path.suffix == ".md":
            for _, target, _ in _LINK.findall(path.read_text(encoding="utf-8")):
                linked = posixpath.normpath(posixpath.join(posixpath.dirname(place), target))
                pending.append((linked, root / linked))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Make the links of one page those of the site, and give lists the empty line that Python-Markdown wants."""
    del files
    docs, inside = Path(config["docs_dir"]).name, page.file.generated_by is None
    place = f"{docs}/{page.file.src_uri}" if inside else page.file.src_uri

    def moved(found: re.Match[str]) -> str:
        before, target, after = found.groups()
        linked = posixpath.normpath(posixpath.join(posixpath.dirname(place), target))
        in_site = linked.removeprefix(f"{docs}/")
        return before + posixpath.relpath(in_site, posixpath.dirname(page.file.src_uri) or ".") + after

    parts = _FENCED.split(_LINK.sub(moved, markdown))
    return "".join(part if part.startswith("```") else _LIST_AFTER_TEXT.sub(r"\1\n\n", part) for part in parts)
