"""mkdocs hooks: documents that are outside docs/ become pages, and files that documents link to become files of the site.

On GitHub the links of documents are relative to the file; here all pages are in one folder.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")
"""Documents at the top of the repository, where people look for them."""
FILES = ("examples/*.py", "examples/notebooks/*.ipynb", "recipes/**/*.toml", "LICENSE")
"""What documents link to."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name in PAGES:
        files.append(File.generated(config, name, content=(ROOT / name).read_text().replace("](docs/", "](")))
    for path in (path for pattern in FILES for path in sorted(ROOT.glob(pattern))):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    markdown = re.sub(r"\]\(\.\./README\.md", "](README.md", markdown)
    return markdown.replace("](../", "](")
