"""A hook of MkDocs: files of the repository outside docs/ that the documents link to become part of the site.

A link is written as GitHub wants it, `../perf/results/data_cpu.json`, and works in both places. A Markdown file becomes
a page, and its links are followed too. A link to a file that does not exist is a warning, which fails the build.
"""

import logging
import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PREFIX = "repository/"  # of those files in the site
# The target of a link or an image, without a section and without links to other sites.
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")
log = logging.getLogger("mkdocs.hooks.repository_files")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file outside docs/ that a page links to, directly or through another such page."""
    waiting = [file for file in files if file.is_documentation_page()]
    for file in waiting:  # grows while it is read
        source = _path(file.src_uri)
        for link in LINK.findall(source.read_text()):
            uri = _uri(source.parent / link)
            if not uri.startswith(PREFIX) or files.get_file_from_path(uri):
                continue
            if not _path(uri).is_file():
                log.warning("%s: %s is not a file of the repository", source.relative_to(ROOT), link)
                continue
            new = File.generated(config, uri, abs_src_path=str(_path(uri)))
            files.append(new)
            if new.is_documentation_page():
                waiting.append(new)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links into those of the site."""
    source, folder = _path(page.file.src_uri), os.path.dirname(page.file.src_uri)
    return LINK.sub(lambda link: os.path.relpath(_uri(source.parent / link[1]), folder or "."), markdown)


def _uri(path: Path) -> str:
    """The name in the site of a file of the repository."""
    name = os.path.relpath(path, ROOT)
    return name.removeprefix("docs/") if name.startswith("docs/") else PREFIX + name


def _path(uri: str) -> Path:
    """The file of the repository that has this name in the site."""
    return ROOT / uri.removeprefix(PREFIX) if uri.startswith(PREFIX) else ROOT / "docs" / uri
