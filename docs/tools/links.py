"""A hook of mkdocs: files outside docs/ that its pages link to become part of the site.

The same Markdown is read on a git host, where a link to ``../configs/base.yaml`` leads to the file. On the site,
Markdown files at other places become pages of their own (:data:`PAGES`), and every other linked file of the repository
is put below ``repository/``. A link to a file that is not there is an error.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "slurm/README.md": "cluster.md",
    "data/README.md": "shards.md",
}
"""Markdown files outside docs/ and the pages that they are on the site; the README's is the landing page."""

FENCE = re.compile(r"^(```|~~~).*?^\1[`~]*[ \t]*$|`[^`\n]+`", re.S | re.M)
LINK = re.compile(r"(\]\()([^)\s]+)(?=[\s)])")
log = logging.getLogger("mkdocs.hooks.links")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the Markdown files at other places as pages."""
    for source, page in PAGES.items():
        if page not in files.src_uris:
            files.append(File.generated(config, page, abs_src_path=str(REPOSITORY / source)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page that lead out of docs/, and add the files that they lead to."""
    source = Path(str(page.file.abs_src_path)).resolve()

    def target(link: str) -> str:
        path, hash_, anchor = link.partition("#")
        if not path or re.match(r"[a-z]+:|//", path):
            return link
        found = Path(os.path.normpath(source.parent / path))
        name = os.path.relpath(found, REPOSITORY).replace(os.sep, "/")
        if name.startswith("../") or not found.is_file():
            if found.is_relative_to(Path(config.docs_dir)) and source.is_relative_to(Path(config.docs_dir)):
                return link  # mkdocs itself looks at these
            log.warning(f"{page.file.src_uri}: no file {link}")
            return link
        return _relative(_uri(name, config, files), page.file.src_uri) + hash_ + anchor

    def outside_code(text: str) -> str:
        return LINK.sub(lambda match: match[1] + target(match[2]), text)

    parts, at = [], 0
    for code in FENCE.finditer(markdown):
        parts += [outside_code(markdown[at : code.start()]), code[0]]
        at = code.end()
    return "".join([*parts, outside_code(markdown[at:])])


def _uri(name: str, config: MkDocsConfig, files: Files) -> str:
    """Where a file of the repository is on the site; it is put there if need be."""
    if name in PAGES:
        return PAGES[name]
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    uri = f"repository/{name}"
    if uri not in files.src_uris:
        files.append(File.generated(config, uri, abs_src_path=str(REPOSITORY / name)))
    return uri


def _relative(uri: str, source: str) -> str:
    return posixpath.relpath(uri, posixpath.dirname(source) or ".")


def on_startup(**_: Any) -> None:
    """Keep the hook between builds of ``mkdocs serve``."""
