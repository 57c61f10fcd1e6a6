"""What pages name outside of docs/ is in the site too: CONTRIBUTING.md, and files that they link to."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
OUTSIDE = re.compile(r"\]\(\.\./((?:configs|examples)/[^)#]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add CONTRIBUTING.md as a page, and each linked file as it is."""
    texts = [file.content_string for file in files.documentation_pages()]
    linked = {path for text in texts for path in OUTSIDE.findall(text)}
    for path in ("CONTRIBUTING.md", *sorted(linked)):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links as they are in the site, where docs/ is the root."""
    if page.file.src_uri == "CONTRIBUTING.md":
        return markdown.replace("](docs/", "](")
    return OUTSIDE.sub(r"](\1)", markdown)
