"""The documentation builds without network, its links lead somewhere, and it leaves out no verb and no public class."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from penchant.cli.main import verbs

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")
ROOT = Path(__file__).parent.parent
PUBLIC = ("penchant", "penchant.heads", "penchant.synthesis", "penchant.sae", "penchant.evaluate")


class Links(HTMLParser):
    """Where a page leads, what it loads by itself, and the places in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.leads: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.places.add(value)
            if name in ("href", "src", "srcset", "data", "poster") and value:
                (self.leads if tag == "a" else self.loads).append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Links]:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return {page: Links(page.read_text(encoding="utf-8")) for page in folder.rglob("*.html")}


@pytest.mark.slow
def test_the_site_builds_strictly_and_every_link_in_it_leads_somewhere(site: dict[Path, Links]) -> None:
    assert len(site) > 20
    broken = []
    for page, links in site.items():
        if page.name == "404.html":  # its links are from the root of wherever the site is put
            continue
        for link in links.leads + links.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            there = site.get(target)
            if not target.is_file() or (there is not None and parts.fragment and parts.fragment not in there.places):
                broken.append(f"{page.name}: {link}")
    assert broken == []


@pytest.mark.slow
def test_a_page_asks_no_other_host_for_anything(site: dict[Path, Links]) -> None:
    loads = {link for links in site.values() for link in links.loads}
    assert {link for link in loads if re.match(r"(\w+:)?//", link)} == set()
    folder = next(iter(site)).parent
    while not (folder / "assets").is_dir():
        folder = folder.parent
    styles = [path.read_text(encoding="utf-8") for path in folder.rglob("*.css")]
    assert styles
    assert [
        found for style in styles for found in re.findall(r"url\(\s*[\"']?(?:https?:)?//[^)]*|@import[^;]*", style)
    ] == []
    # The theme's script fetches mermaid from a CDN, but only for a page that has such a diagram.
    assert [page for page in site if 'class="mermaid"' in page.read_text(encoding="utf-8")] == []


@pytest.mark.slow
def test_every_verb_and_every_argument_stand_on_the_page_of_the_command_line(site: dict[Path, Links]) -> None:
    (page,) = (page for page in site if page.name == "cli.html")
    text = page.read_text(encoding="utf-8")
    for name, verb in verbs().items():
        for action in verb if isinstance(verb, dict) else ("",):
            assert f"penchant-{name}-{action}".rstrip("-") in site[page].places
    # A default and the words behind it, from a verb inside another and from one alone.
    assert re.search(r"<code>--held_out</code></td>\s*<td><code>0.02</code></td>\s*<td>share of the prompts", text)
    assert re.search(r"<code>--codes</code></td>\s*<td><code>64</code></td>\s*<td>size of the codebook", text)


def test_everything_public_is_in_the_reference() -> None:
    named = set()
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        named |= {path.rpartition(".")[2] for path in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.M)}
    public = {name for module in PUBLIC for name in import_module(module).__all__}
    assert public - named - {"HEADS", "SYNTHESIZERS"} == set()  # the registries behind load_head and `synthesis=`
    assert {"PersonalLLM", "Policy", "load_pairs", "Users", "Rule"} <= named
