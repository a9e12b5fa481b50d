"""The documents say what the code and the results say."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()


def test_tables_are_made_from_the_results() -> None:
    done = subprocess.run([sys.executable, "benchmarks/tables.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_map_names_every_module_and_nothing_else() -> None:
    tree = README.split("## Map")[1].split("## Licence")[0]
    modules = {path.name for path in (ROOT / "penchant").glob("*.py") if not path.name.startswith("__")}
    named = set(re.findall(r"\b(\w+\.py)\b", tree))
    parts = {f"{name}.py" for name in re.findall(r"\breport_\w+\b", tree)}
    for folder in ("heads", "synthesis", "sae", "explain", "policy", "personal", "serve", "cluster"):
        modules |= {p.name for p in (ROOT / "penchant" / folder).glob("*.py") if not p.name.startswith("__")}
    assert named | parts == modules


def test_papers_page_points_to_files_that_exist() -> None:
    named = re.findall(r"`(penchant/[\w/]+\.py)`", (ROOT / "docs" / "PAPERS.md").read_text(encoding="utf-8"))
    assert named
    assert [path for path in named if not (ROOT / path).is_file()] == []


def test_nothing_is_left_to_be_written() -> None:
    assert re.findall(r"\b[A-Z]+_TEXT\b|TODO|TBD", README) == []


def test_links_in_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
