"""The page of an explanation: safe with hostile texts, right in its figures, and looked at in a browser."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penchant import load_pairs
from penchant.cli.main import main
from penchant.report_explain import write_explanation
from penchant.report_features import Bar, bars, effect, signed
from penchant.report_style import STYLE
from penchant.report_tokens import LEVELS, TOKEN_STYLE, Shade, Token, said, shaded, tokens
from penchant.sae.formats import save_sae
from tests.test_report import HOSTILE, Page, browser, chromium, framed, luminance
from tests.tiny_explain import SAE, explained, folder, llm, reward_model
from tests.tiny_llm import tiny_pairs

KINDS = ("sae", "linear", "mlp")


def page_of(found: dict[str, Any], folder: Path) -> Page:
    return Page(write_explanation(found, folder / "new" / "explanation.html"))


@pytest.fixture(scope="module", params=KINDS)
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    return explained(request.param)


def spoiled(value: Any) -> Any:
    """The same with every string as bad as it gets, but for those that the page looks things up by.

    Of a list of tokens every twentieth.
    """
    if isinstance(value, str):
        return value if re.fullmatch(r"\d+:(last|mean)|chosen|rejected|prompt", value) else HOSTILE + value
    if isinstance(value, list):
        return [spoiled(one) if i % 20 == 0 or not isinstance(one, str) else one for i, one in enumerate(value)]
    return {key: spoiled(one) for key, one in value.items()} if isinstance(value, dict) else value


# Safety


def test_page_loads_nothing_and_runs_nothing(found: dict[str, Any], tmp_path: Path) -> None:
    page = page_of(found, tmp_path)
    assert not re.search(r"https?:|url\(|@import|javascript:|<script", page.source)
    policy = next(dict(attrs) for _, attrs in page.tags if "http-equiv" in attrs)["content"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_hostile_texts_stay_texts(found: dict[str, Any], tmp_path: Path) -> None:
    good, bad = page_of(found, tmp_path), page_of(spoiled(found), tmp_path)
    assert {tag for tag, _ in bad.tags} <= {tag for tag, _ in good.tags}, "no text may add an element of another kind"
    assert {(t, name) for t, a in bad.tags for name in a} <= {(t, name) for t, a in good.tags for name in a}
    assert "<script>document.title='pwned'</script>" in bad.text, "and it is shown as it was"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u200b\u202a-\u202e\u2066-\u2069\ufeff]", bad.source)
    assert "[U+202E]reversed" in bad.text
    bad.source.encode("utf-8")


# Contents


def test_headline_figures_and_sums(found: dict[str, Any], tmp_path: Path) -> None:
    text = page_of(found, tmp_path).text
    carried = sum(one["share"] for one in found["features"])
    total = len(found["features"]) + found["others"]["features"]
    assert f"{len(found['features'])} of {total} features carry {100 * carried:.1f}% of the score" in text
    for one in found["features"]:
        assert found["latents"][str(one["feature"])]["name"] in text
        assert f"{100 * one['chosen']:.1f}%" in text
    for pair in found["pairs"]:
        assert f"row {pair['row']} · {pair['why']}" in text
        assert ("right by" if pair["score"]["difference"] > 0 else "wrong by") in text
    assert ("is not explained here" in text) is (found["rest"] > 0)
    assert ("what the SAE does not describe" in text) is (found["rest"] > 0)
    assert ("approximate" in text) is not found["model"]["additive"]


def test_the_breakdown_as_shown_adds_up(found: dict[str, Any], tmp_path: Path) -> None:
    source = page_of(found, tmp_path).source
    tables = re.findall(r"The score, part by part</caption>.*?<tbody>(.*?)</tbody>", source, re.DOTALL)
    assert len(tables) == len(found["pairs"])
    for table in tables:
        rows = [re.findall(r"<td>([^<]*)</td>", row) for row in table.split("</tr>")[:-1]]
        values = np.array([[float(cell.replace("−", "-").replace(",", "")) for cell in row] for row in rows])
        rounding = 0.5 * 10.0 ** -len(max((cell.partition(".")[2] for row in rows for cell in row), key=len))
        np.testing.assert_allclose(values[:-1].sum(0), values[-1], atol=rounding * (len(values) + 1))


def test_every_part_may_be_missing_or_silent(tmp_path: Path) -> None:
    silent = copy.deepcopy(explained("sae"))
    for one in silent["latents"].values():
        one |= {"name": "", "tokens": [], "ending": [], "examples": []}
    for text in silent["texts"].values():
        text.pop("prompt")
        for side in text.values():
            side["activations"] = {}
    page = page_of({name: part for name, part in silent.items() if name != "cost"}, tmp_path)
    assert f"feature {silent['features'][0]['feature']}" in page.text
    assert "(no prompt)" in page.text
    nothing = {**silent, "features": [], "pairs": [], "others": {"features": 0, "share": 0.0}}
    assert "No feature tells chosen from rejected" in page_of(nothing, tmp_path).text


def test_features_say_what_they_do() -> None:
    assert [effect(value).verb for value in (0.5, -0.5, 0.0, None)] == ["raises", "lowers", "raises", "raises"]
    assert [signed(v) for v in (0.034567, -12.3456, 0.0, None, float("nan"))] == ["+0.0346", "−12.3", "0", "–", "–"]
    assert [signed(v, 2) for v in (0.034567, -1234.5)] == ["+0.03", "−1,234.50"]


def test_bars_are_as_long_as_their_values_and_start_at_zero() -> None:
    drawn = bars([Bar(str(v), v, str(v), effect(v)) for v in (0.5, -0.25, 0.1)], "title")
    placed = [
        (float(x), float(w)) for x, w in re.findall(r'class="bar \w+" x="([\d.]+)" y="\d+" width="([\d.]+)"', drawn)
    ]
    widths = [width for _, width in placed]
    assert widths == pytest.approx([208, 104, 41.6], abs=0.2)
    zero = float(re.findall(r'class="axis" x1="([\d.]+)"', drawn)[0])
    assert [placed[0][0], sum(placed[1]), placed[2][0]] == pytest.approx([zero] * 3, abs=0.2)


# Shades


def test_shades_grow_with_activation_and_the_peak_has_its_number() -> None:
    shade = Shade("down", 8.0)
    assert [shade.level(value) for value in (0.0, 0.1, 2.5, 4.1, 7.9, 8.0)] == [0, 1, 2, 3, LEVELS, LEVELS]
    text = [Token("I", True, 0.0), Token(" hate", True, 7.9), Token(" it", True, 1.0), Token("<|end|>", False, 0.0)]
    made = shaded(text, shade)
    assert '<mark class="down4 peak" title="7.9">hate<sup>7.9</sup></mark>' in made
    assert ' <mark class="down1" title="1.0">it</mark>' in made
    assert '<span class="dim"> &lt;|end|&gt;</span>' in made
    assert re.sub(r"<sup>.*?</sup>|<.*?>", "", made).split() == ["I", "hate", "it", "&lt;|end|&gt;"]


def test_long_texts_are_cut_around_the_peak_and_say_so() -> None:
    text = [Token(f" w{i}", True, float(i == 500)) for i in range(1000)]
    made = shaded(text, Shade("up", 1.0), around=10)
    assert re.findall(r"\bw\d+", made) == [f"w{i}" for i in range(490, 511)]
    assert "[… 490 tokens …]" in made
    assert "[… 489 tokens …]" in made
    assert shaded(text[495:506], Shade("up", 1.0), cut=(True, True)).count("…") == 2
    assert "…" not in shaded(text[495:506], Shade("up", 1.0))


def test_tokens_of_one_character_are_one_and_white_space_is_visible() -> None:
    made = tokens(["🙂", "", "", "a"], [1, 1, 1, 0], [1.0, 3.0, 2.0, 0.0])
    assert made == [Token("🙂", True, 3.0), Token("a", False, 0.0)]
    assert shaded([Token("a", True, 2.0), Token("\n\n", True, 1.0)], Shade("up", 2.0)).endswith(">⏎⏎</mark>\n\n")
    assert said([Token("a", True, 0.0), Token("<x>", False, 0.0), Token("b ", True, 0.0)]) == "a b"


@pytest.mark.parametrize("scheme", [0, 1])
def test_contrast_on_every_shade_meets_aa(scheme: int) -> None:
    schemes = [style.split("prefers-color-scheme: dark")[scheme] for style in (STYLE, TOKEN_STYLE)]
    colours = dict(re.findall(r"--(\w[\w-]*): (#\w{6})", "".join(schemes)))
    grounds = [f"{style}-{level}" for style in ("up", "down") for level in range(1, LEVELS + 1)]
    for ink, ground in [("ink", ground) for ground in grounds] + [("down", "card"), ("down", "page")]:
        light, dark = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


# Access


def test_page_is_usable_without_eyes_or_mouse(found: dict[str, Any], tmp_path: Path) -> None:
    page = page_of(found, tmp_path)
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {href[1:] for href in page.attributes("href")} <= set(ids)
    assert set(page.attributes("aria-labelledby")) <= set(ids)
    pictures = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert pictures
    assert all(attrs["role"] == "img" and len(attrs["aria-label"]) > 30 for attrs in pictures)
    marks = [attrs for tag, attrs in page.tags if tag == "mark"]
    assert sum("title" not in attrs for attrs in marks) == 5, "all but those of the key say how active they are"
    assert len(marks) > 100
    scrolling = [a for _, a in page.tags if a.get("class") in ("scroll", "text") and "tabindex" in a]
    assert all(a["role"] == "region" and a["aria-label"] for a in scrolling)
    for sign in ("▲", "▼"):
        assert sign in page.text, "colour is not the only sign of direction"


# In a browser


@browser
@pytest.mark.parametrize("hostile", [False, True])
def test_no_width_scrolls_sideways_and_no_script_runs(hostile: bool, tmp_path: Path) -> None:
    found = explained("linear")
    page = write_explanation(spoiled(found) if hostile else {**found, "title": "A demo"}, tmp_path / "page.html")
    page.write_text(re.sub(r"<details(?! open)", "<details open", page.read_text(encoding="utf-8")), encoding="utf-8")
    script = """onload = () => { document.body.dataset.found =
      [...document.querySelectorAll('iframe')].map(({contentWindow: f}) => {
      const d = f.document, boxes = 'section, section > *, figure, svg[role], dd, details, .text, .words li';
      const over = [...d.querySelectorAll(boxes)]
        .filter(e => e.getBoundingClientRect().right > f.innerWidth + 1);
      return [f.innerWidth, d.documentElement.scrollWidth, over.length, d.title.includes('pwned') && d.title.length < 9,
        d.querySelectorAll('script, img').length].join() }).join(';') }"""
    host = framed(tmp_path, page, [(320, 600), (360, 800), (1280, 900)], script)
    shown = re.search(r'data-found="([^"]*)"', chromium(tmp_path, host, "--window-size=1280,2400", "--dump-dom"))
    assert shown is not None
    assert shown[1] == "320,320,0,false,0;360,360,0,false,0;1280,1280,0,false,0"


@browser
@pytest.mark.parametrize("size", [(360, 1600), (1280, 1000)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_screenshots_show_a_page_in_both_schemes(size: tuple[int, int], scheme: str, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    page = write_explanation(explained("sae"), tmp_path / "page.html")
    dark = ["--force-dark-mode"] if scheme == "dark" else []
    shot = tmp_path / "shot.png"
    window = "--window-size={},{}".format(*size)
    chromium(tmp_path, framed(tmp_path, page, [size]), window, f"--screenshot={shot}", *dark)
    pixels = np.asarray(image.open(shot).convert("RGB"))[: size[1], : size[0]]
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50, "a blank page has one colour"
    for colour in ("#3459b5", "#8b571c") if scheme == "dark" else ("#8aadf2", "#efa658"):
        shade = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert np.sum(np.all(pixels == shade, axis=-1)) > 20, "the key shows both shades of the scheme"
    assert (pixels.mean() < 60) if scheme == "dark" else (pixels.mean() > 200)


# From the command line


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs, an SAE and reward models of two kinds."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_pairs(20)))
    save_sae(SAE, folder / "sae")
    for kind in ("sae", "linear"):
        reward_model(kind).save_pretrained(folder / kind)
    return folder


def run(work: Path, kind: str, *more: str) -> int:
    files = [str(work / kind), str(work / "pairs.jsonl"), "--cache", str(folder() / "cache")]
    return main(["explain", *files, "--out", str(work / "run"), *more])


def test_a_run_leaves_the_page_and_prints_the_strongest_features(work: Path, capsys: Any) -> None:
    assert llm().is_dir()
    assert run(work, "linear", "--sae", str(work / "sae"), "--pair", "3", "--top", "4") == 0
    assert {path.name for path in (work / "run").iterdir()} == {"config.yaml", "explanation.json", "explanation.html"}
    found = json.loads((work / "run" / "explanation.json").read_text())
    assert len(found["features"]) == 4
    assert [pair["row"] for pair in found["pairs"]] == [3]
    assert found["cost"]["total_seconds"] > 0
    printed = capsys.readouterr().out
    assert "accuracy on 20 pairs" in printed
    assert f"4 of {4 + found['others']['features']} features carry" in printed
    for one in found["features"]:
        assert f"({one['feature']}, {one['view']})" in printed
    assert "the SAE does not describe" in printed
    assert f"page: {work / 'run' / 'explanation.html'}" in printed
    assert "linear explained on" in (work / "run" / "explanation.html").read_text()


def test_saved_models_are_explained_alike(work: Path) -> None:
    assert run(work, "sae") == 0
    found = json.loads((work / "run" / "explanation.json").read_text())
    again = explained("sae", load_pairs(str(work / "pairs.jsonl")))
    assert found["features"] == again["features"]
    assert found["latents"] == again["latents"]


def test_a_wrong_head_is_refused_with_a_sentence(work: Path, capsys: Any) -> None:
    assert run(work, "linear") == 2
    said = capsys.readouterr().err
    assert "--sae" in said
    assert said.count("\n") == 1
