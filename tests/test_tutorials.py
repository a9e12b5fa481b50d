"""Every tutorial runs in an empty folder, and shows what comes out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages import ROOT, run_page, same, steps

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_and_shows_what_comes_out(page: Path, tmp_path: Path) -> None:
    assert "\n".join(run_page(page, tmp_path)) == ""


def test_there_is_a_tutorial_for_each_system_and_most_of_its_blocks_show_their_output() -> None:
    assert [page.stem for page in TUTORIALS] == ["lens", "lpc", "personal", "sparserm"]
    for page in TUTORIALS:
        found = steps(page.read_text(encoding="utf-8"))
        assert {step.language for step in found} == {"python", "sh"}
        assert sum(step.shown is not None and not step.varies for step in found) >= 2
        assert all(step.shown is None or step.shown.strip() for step in found)


@pytest.mark.parametrize(
    ("shown", "came", "equal"),
    [
        ("ridge  0.600 (0.4 to 0.7)\n", "ridge 0.521 (0.39 to 0.63)", True),
        ("ridge 0.6\n", "MLP 0.6\n", False),
        ("gain -0.2, 1,024 tokens, 3e-05\n", "gain +0.1, 96 tokens, 0.1\n", True),
        ("one\n...\nfour\n", "one\ntwo\nthree\nfour\n", True),
        ("one\n...\nfour\n", "one\ntwo\nfive\n", False),
        ("one\n", "one\ntwo\n", False),
        ("no synthesis\n", "\n", False),
        ("layer8\n", "layer9\n", False),  # part of a name, no figure
    ],
)
def test_output_is_compared_by_its_words(shown: str, came: str, equal: bool) -> None:
    assert same(shown, came) is equal


PAGE = """
```python
x = 2
print("seven", x + 5)
```

```text
seven 7
```

```sh
echo "$(basename "$PWD")" && ls
```

<!-- text varies -->
```text
anything
```

```python
print("eight", x)
```

```text
nine 9
```
"""


def test_blocks_of_a_page_share_names_and_a_wrong_output_is_told(tmp_path: Path) -> None:
    page, work = tmp_path / "page.md", tmp_path / "work"
    work.mkdir()
    page.write_text(PAGE)
    here = Path.cwd()
    wrong = run_page(page, work)
    assert len(wrong) == 1
    assert "nine 9" in wrong[0]
    assert "eight 2" in wrong[0]
    assert Path.cwd() == here
    page.write_text("```sh\nexit 3\n```\n")
    with pytest.raises(AssertionError, match="exit 3"):
        run_page(page, work)
