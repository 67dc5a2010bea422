"""Hooks of the documentation site (mkdocs.yml): the pages of the root, and links out of docs/.

The pages are read on GitHub and on the site. On the site README.md is the first page,
CONTRIBUTING.md and CHANGELOG.md are pages too, and a link to a file outside `docs/` leads to the
repository if `repo_url` is set; otherwise its text stays. What it names has to exist either way.
"""

import re
from pathlib import Path
from posixpath import normpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages at the root of the repository -> their names on the site."""
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the root."""
    for name, page in ROOT_PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points every relative link of a page to where its target is on the site.

    Raises:
        PluginError: A link names a file that does not exist.
    """
    folder = "" if page.file.src_uri in ROOT_PAGES.values() else "docs"

    def relink(match: re.Match[str]) -> str:
        image, text, target = match["image"], match["text"], match["target"]
        path, hash_sign, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", target):
            return match[0]
        path = normpath(f"{folder}/{path}".lstrip("/"))
        if not (ROOT / path).exists():
            raise PluginError(f"{page.file.src_uri}: {target} does not exist")
        if path in ROOT_PAGES:
            return f"{image}[{text}]({ROOT_PAGES[path]}{hash_sign}{anchor})"
        if path.startswith("docs/") and path[5:] in files.src_uris:
            return f"{image}[{text}]({path[5:]}{hash_sign}{anchor})"
        if not config.repo_url:
            return text
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"[{text}]({config.repo_url.rstrip('/')}/{kind}/main/{path}{hash_sign}{anchor})"

    # blocks of code are left alone: what looks like a link there is none
    parts = re.split(r"(^```.*?^```)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(relink, part) for part in parts)
