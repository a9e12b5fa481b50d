"""The report: safe with hostile texts, whole without any part, right in its figures, and looked at in a browser."""

import copy
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.report import write_report
from penchant.report_html import LONGEST, count, duration, escape, number, percent, plain, points
from penchant.report_plots import Line, Row, forest, lines, ticks
from penchant.report_style import STYLE

HOSTILE = (
    "<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\"></div></details></main>"
    "\"' autofocus onfocus='document.title=1' & &amp; "
    "\x00\x07\x1b[31m \u202ereversed\u202c \u200bzero\ufeffwidth \ud800 "
    "مرحبا שלום 👨‍👩‍👧 Z\u0300\u0301\u0302\u0303\u0304algo <!-- ]]> <style>*{display:none}</style> "
)


def figure(value, n=1013, **more):
    return {"value": value, "low": value - 0.03, "high": value + 0.03, "n": n, **more}


@pytest.fixture
def metrics():
    """Every part that a run can write."""
    side = {"name": "hh", "pairs": 1013, "prompts": 1000, "skipped": 2, "sources": {"harmless": 500, "helpful": 513}}
    return {
        "title": "A demo",
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {"penchant": "0.1.0", "torch": "2.13.0"},
        "seed": 0,
        "data": {"train": side, "test": side},
        "recipe": {"model": "m", "views": ["20:mean"], "max_length": 512},
        "backbone": {
            "name": "SmolLM2",
            "dtype": "bfloat16",
            "dtype_reason": "AMX",
            "layers_run": 20,
            "parameters": 10**8,
        },
        "head": {
            "name": "linear",
            "views": ["20:mean"],
            "strength": 10.0,
            "parameters": 577,
            "tried": [
                {
                    "views": [f"{i}:mean"],
                    "head": "linear",
                    "strength": 10.0**i,
                    "cv_accuracy": 0.6 + i / 100,
                    "chosen": i == 9,
                }
                for i in range(10)
            ],
        },
        "accuracy": {
            "overall": figure(0.671, ties=3),
            "by_source": {"harmless": figure(0.7, 500, ties=0), "helpful": figure(0.62, 513, ties=3)},
        },
        "baselines": {
            "chance": {"value": 0.5, "low": 0.5, "high": 0.5, "n": 1013},
            "longer text": figure(0.524),
            "n-gram + length": figure(0.58),
        },
        "over_baseline": {"name": "n-gram + length", **figure(0.091)},
        "calibration": {
            "temperature": 1.31,
            "ece": 0.0281,
            "ece_if_perfect": 0.0332,
            "ece_before": 0.05,
            "brier": 0.21,
            "nll": 0.61,
            "curve": [{"confidence": 0.52 + 0.045 * i, "accuracy": 0.5 + 0.05 * i, "n": 101} for i in range(10)],
        },
        "length_bias": {
            "chosen_longer": figure(0.7, 500),
            "chosen_shorter": figure(0.6, 510),
            "correlation": 0.12,
            "share_chosen_longer": 0.49,
        },
        "learning_curve": [
            {**figure(0.55 + 0.03 * i), "n": n, "seeds": 5} for i, n in enumerate((100, 300, 1000, 2044))
        ],
        "synthesis": {
            "kind": "lens",
            "arguments": {"latent": 16, "pairing": "same-prompt"},
            "factor": 8,
            "real": 800,
            "unlabelled": 1200,
            "says": "5,600 synthetic pairs by lens were added to 800 real ones.",
            "collapsed": False,
            "diagnostics": {
                "reconstruction_share": 0.4321,
                "reconstruction_on": "held-out",
                "kl_by_dimension": [0.0, 2.5, 3.1, 0.7],
                "active_units": 3,
                "seconds": 1.6,
                "parameters": 449_056,
            },
            "order": {"order_kept": 0.897, "seed_accuracy": 0.64, "synthetic_accuracy": 0.656, "rounds": 2},
            "theory": [
                {"noise": noise, "order_kept": 0.82 - noise / 10, "guaranteed": 0.1, "tightness": 0.05}
                | {"movement_mean": 0.4, "margin_mean": 0.8}
                for noise in (0.0, 0.1, 0.3, 1.0)
            ],
            "decision": {
                "says": "lens is used.",
                "rows": [
                    {"name": name, "cv_accuracy": 0.65, "cv_loss": 0.61, "gain": gain, "error": 0.003}
                    | {"chosen": name == "lens"}
                    for name, gain in (("none", 0.0), ("lens", 0.0123), ("noise", -0.0045))
                ],
            },
        },
        "best_of_n": {
            "gold": "gold_score",
            "prompts": 200,
            "n": [1, 2, 4, 8],
            "picked": [figure(0.3 * i) for i in range(4)],
            "random": [0.0] * 4,
            "oracle": [0.5 * i for i in range(4)],
        },
        "mistakes": [
            {
                "row": 7,
                "prompt": "Why?",
                "chosen": "Yes.",
                "rejected": "No.",
                "score_chosen": -1.0,
                "score_rejected": 2.5,
            }
            | {"source": "harmless"}
        ],
        "cost": {
            "tokens": 800_000,
            "unique_tokens": 500_000,
            "encode_seconds": 170.2,
            "tokens_per_second": 2945,
            "fit_seconds": 6.31,
            "total_seconds": 182.4,
            "peak_memory_mb": 1412,
        },
    }


@pytest.fixture
def hostile(metrics):
    """The same with every string, and every key that comes from data, as bad as it gets."""

    def spoil(value):
        if isinstance(value, str):
            return HOSTILE + value
        if isinstance(value, list):
            return [spoil(v) for v in value]
        return {k: spoil(v) for k, v in value.items()} if isinstance(value, dict) else value

    spoilt = spoil(metrics)
    for holder, key in ((spoilt["accuracy"], "by_source"), (spoilt["data"]["test"], "sources"), (spoilt, "baselines")):
        holder[key] = {HOSTILE + name: value for name, value in holder[key].items()}
    spoilt["mistakes"][0]["prompt"] += "W" * 30_000
    return spoilt


class Page(HTMLParser):
    """Elements, attributes and text; complains where tags do not nest."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.tags, self.text, self.open = [], "", []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.tags if name in attrs]


def made(metrics, tmp_path):
    return Page(write_report(metrics, tmp_path / "new" / "report.html"))


# Safety


def test_page_loads_nothing_and_runs_nothing(metrics, tmp_path):
    page = made(metrics, tmp_path)
    assert not re.search(r"https?:|//|url\(|@import|javascript:", page.source)
    policy = dict(page.tags[[a.get("http-equiv") for _, a in page.tags].index("Content-Security-Policy")][1])["content"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_hostile_texts_stay_texts(metrics, hostile, tmp_path):
    good, bad = made(metrics, tmp_path), made(hostile, tmp_path)
    assert [tag for tag, _ in bad.tags] == [tag for tag, _ in good.tags], "no text may add or close an element"
    assert [set(a) for _, a in bad.tags] == [set(a) for _, a in good.tags], "or add an attribute"
    assert all(href.startswith("#") for href in bad.attributes("href"))
    assert "<script>document.title='pwned'</script>" in bad.text, "and it is shown as it was"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u200b\u202a-\u202e\u2066-\u2069\ufeff]", bad.source)
    assert "[U+0000]" in bad.text
    assert "[U+202E]reversed" in bad.text
    assert "👨‍👩‍👧" in bad.text, "joiners inside emoji are kept"
    assert len(bad.source) < 30 * (len(HOSTILE) + LONGEST) + 8 * len(good.source)


@given(st.text(st.characters(), max_size=60))
def test_escape_leaves_nothing_to_interpret(text):
    safe = escape(text)
    assert not set(safe) & set("<>\"'")
    assert re.fullmatch(r"([^&]|&(lt|gt|amp|quot|#x27);)*", safe, re.DOTALL)
    safe.encode("utf-8")


def test_escape_keeps_lines_and_cuts_what_is_very_long():
    assert escape("a\r\n\tb\rc") == "a\n\tb[U+000D]c"
    assert escape("x" * LONGEST) == "x" * LONGEST
    assert escape("x" * (LONGEST + 1500)).endswith("x… [1,500 more characters]")


# Contents


def test_headline_and_figures(metrics, tmp_path):
    text = made(metrics, tmp_path).text
    assert "Right on 67.1% of 1,013 held-out pairs (64.1–70.1); always choosing the longer text: 52.4%." in text
    for says in (
        "n-gram + length",
        "61.0–67.0",
        "3 min 2 s",
        "62.5% of all",
        "3 tied pairs",
        "9:mean ✓ chosen",
        "wrong by 3.50",
    ):
        assert says in text
    assert "Not shown to beat" not in text


def test_warnings_are_as_strong_as_the_evidence(metrics, tmp_path):
    def said(accuracy, **over):
        changed = copy.deepcopy(metrics)
        changed["accuracy"]["overall"] |= figure(accuracy)
        changed["over_baseline"] |= over
        return made(changed, tmp_path).text

    clear, ahead = said(0.671), said(0.62, value=0.04, low=0.01, high=0.07)
    unclear, behind = said(0.62, value=0.04, low=-0.01, high=0.09), said(0.5)
    assert "overlaps" not in clear
    assert "unlikely to be chance" in ahead
    assert "Not shown" not in ahead
    assert "Not shown to beat a simple baseline" in unclear
    assert "4.0 points ahead (−1.0 to +9.0)" in unclear
    assert "Worse than a simple baseline" in behind


def test_synthetic_pairs(metrics, tmp_path):
    page = made(metrics, tmp_path)
    assert "keeps the order of 89.7% of the synthetic pairs" in page.text
    for figure_ in ("43.2% (held-out latents)", "3 of 4", "5,600 from 800", "lens ✓ chosen", "+0.0123", "−0.0045"):
        assert figure_ in page.text
    heights = [float(tag["height"]) for name, tag in page.tags if tag.get("class") == "bar"]
    assert heights == pytest.approx([96, 96 * 2.5 / 3.1, 96 * 0.7 / 3.1, 0], abs=0.1)
    assert "guaranteed by the bound: 10% at 0.1" in page.source
    assert "collapsed" not in page.text
    metrics["synthesis"]["collapsed"] = True
    assert "The VAE has collapsed." in made(metrics, tmp_path).text
    alone = {"kind": "none", "says": "No synthesis: <none> helps.", "decision": metrics["synthesis"]["decision"]}
    page = made({**metrics, "synthesis": alone}, tmp_path)
    assert "No synthesis: <none> helps." in page.text
    assert "Synthetic pairs" in page.text
    assert "<none>" not in page.source


def test_every_part_may_be_missing(metrics, tmp_path):
    """Each alone, each as null or empty, each pair of keys inside a part, and all at once."""
    whole = len(made(metrics, tmp_path).attributes("href"))
    for key in metrics:
        for empty in (None, {}):
            page = made({**metrics, key: empty}, tmp_path)
            assert len(page.attributes("href")) >= whole - 2, key
    for key, part in metrics.items():
        for inner in part if isinstance(part, dict) else ():
            if key not in ("best_of_n", "data") and (key, inner) != ("accuracy", "overall"):
                made({**metrics, key: {**part, inner: None}}, tmp_path)
    metrics["accuracy"]["overall"] |= {"low": None, "high": None}
    metrics["baselines"]["longer text"] |= {"low": None}
    assert "67.1%" in made(metrics, tmp_path).text
    assert "No accuracy was measured" in made({}, tmp_path).text
    assert "No accuracy was measured" in made({"accuracy": {"overall": {"value": float("nan")}}}, tmp_path).text


def test_degenerate_figures_still_draw(metrics, tmp_path):
    metrics["accuracy"]["overall"] = {"value": 1.0, "low": 1.0, "high": 1.0, "n": 1, "ties": 0}
    metrics["baselines"] = {"chance": {"value": 0.5, "low": 0.5, "high": 0.5, "n": 1}}
    metrics["accuracy"]["by_source"] = {"a": figure(0.0), "b": figure(1.0)}
    metrics["calibration"]["curve"] = [{"confidence": 0.5, "accuracy": 0.5, "n": 1}]
    metrics["learning_curve"] = [{"n": n, "value": 0.5, "low": 0.5, "high": 0.5, "seeds": 1} for n in (1, 2)]
    metrics["best_of_n"] |= {"picked": [figure(0.0)] * 4, "oracle": [0.0] * 4}
    metrics["synthesis"]["diagnostics"]["kl_by_dimension"] = [0.0]
    for row in metrics["synthesis"]["theory"]:
        row |= {"order_kept": 1.0, "guaranteed": 1.0, "margin_mean": 0.0}
    assert "nan" not in made(metrics, tmp_path).source.lower().replace("penchant", "")


def test_numbers_have_sensible_digits():
    assert [percent(0.6712), percent(None), percent(float("nan"))] == ["67.1%", "–", "–"]
    assert [number(v) for v in (0.034567, 12.3456, 1234.5, 0, -0.5, 1e-7)] == [
        "0.0346",
        "12.3",
        "1,234",
        "0",
        "−0.500",
        "1.00e−07",
    ]
    assert [plain(v) for v in (0.5, 10.0, 1e-3)] == ["0.5", "10", "0.001"]
    assert [duration(v) for v in (6.31, 59.6, 182.4, 7322)] == ["6.3 s", "1 min 0 s", "3 min 2 s", "2 h 2 min"]
    assert [count(1013), points(-0.0312), points(0.02)] == ["1,013", "−3.1", "+2.0"]


# Access


def test_page_is_usable_without_eyes_or_mouse(metrics, tmp_path):
    page = made(metrics, tmp_path)
    ids = page.attributes("id")
    assert ("html", {"lang": "en"}) in page.tags
    assert len(ids) == len(set(ids))
    assert {h[1:] for h in page.attributes("href")} | set(page.attributes("aria-labelledby")) == set(ids)
    assert [t for t, _ in page.tags if t in ("h1", "h2", "h3")][:2] == ["h1", "h2"]
    pictures = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert all(a.get("aria-hidden") == "true" or (a["role"] == "img" and len(a["aria-label"]) > 60) for a in pictures)
    described = " ".join(a.get("aria-label", "") for a in pictures)
    for figure_in_plot in ("n-gram + length 58.0%", "61% at 1,000", "1.5 at 8"):
        assert figure_in_plot in described
    scrolling = [a for _, a in page.tags if a.get("class") in ("scroll", "text")]
    assert all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in scrolling)
    cells = [a for tag, a in page.tags if tag == "th"]
    assert all(a["scope"] in ("col", "row") for a in cells)


def luminance(colour):
    c = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("scheme", [0, 1])
def test_contrast_meets_aa(scheme):
    colours = dict(re.findall(r"--(\w[\w-]*): (#\w{6})", STYLE.split("prefers-color-scheme: dark")[scheme]))
    least = {(ink, ground): 4.5 for ink in ("ink", "muted", "accent") for ground in ("page", "card")}
    least |= {("ink", "soft"): 4.5, ("ink", "warn-soft"): 4.5, ("warn", "warn-soft"): 4.5, ("other", "card"): 3.0}
    for (ink, ground), needed in least.items():
        light, dark = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= needed, (ink, ground)


# Plots


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_round_and_inside(low, width):
    found = ticks(low, low + width)
    assert 1 <= len(found) <= 8
    assert all(low - 1e-6 * width <= t <= low + 1.000001 * width for t in found)
    assert np.ptp(np.diff(found)) < 1e-3 * width if len(found) > 1 else True


def test_marks_stand_where_their_values_say():
    """Positions are an increasing linear map of the values, for the forest and for both axes of lines."""
    drawn = forest([Row("a", 0.5, 0.4, 0.6), Row("b", 0.7, 0.6, 0.8), Row("c", 0.6, 0.5, 0.7)])
    x = [float(v) for v in re.findall(r'cx="([\d.]+)"', drawn)]
    assert (x[0] + x[1]) / 2 == pytest.approx(x[2], abs=0.2)
    assert x[0] < x[2] < x[1]
    drawn = lines([Line("l", [1, 10, 100], [0.2, 0.4, 0.3])], "x", "y", log=True)
    at = [(float(a), float(b)) for a, b in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    assert at[1][0] == pytest.approx((at[0][0] + at[2][0]) / 2, abs=0.2)
    assert at[2][1] == pytest.approx((at[0][1] + at[1][1]) / 2, abs=0.2)
    assert at[0][1] > at[1][1], "larger is higher"
    assert at[2][0] - at[0][0] > 200, "the points fill the width"


# In a browser

CHROMIUM = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on PATH")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--allow-file-access-from-files",
]


def chromium(tmp_path, page, *flags):
    """Standard output of one headless run on a page."""
    profile = tmp_path / f"profile{len(list(tmp_path.iterdir()))}"
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, timeout=120, check=True, encoding="utf-8").stdout


def framed(tmp_path, page, sizes, script=""):
    """A page with `page` in frames of the given sizes, since a headless window is never narrower than 500 px."""
    frames = "".join(f'<iframe src="{page.name}" width="{w}" height="{h}"></iframe>' for w, h in sizes)
    style = ":root{color-scheme:light dark} body{margin:0} iframe{border:0;display:block}"
    host = page.parent / "host.html"
    host.write_text(f"<!doctype html><style>{style}</style>{frames}<script>{script}</script>")
    return host


@browser
@pytest.mark.parametrize("which", ["metrics", "hostile"])
def test_no_width_scrolls_sideways_and_no_script_runs(which, request, tmp_path):
    page = write_report(request.getfixturevalue(which), tmp_path / "report.html")
    page.write_text(page.read_text(encoding="utf-8").replace("<details>", "<details open>"), encoding="utf-8")
    script = """onload = () => { document.body.dataset.found =
      [...document.querySelectorAll('iframe')].map(({contentWindow: f}) => {
      const d = f.document, boxes = 'section, section > *, figure, svg[role], dd, .tiles div, details';
      const over = [...d.querySelectorAll(boxes)]
        .filter(e => e.getBoundingClientRect().right > f.innerWidth + 1);
      return [f.innerWidth, d.documentElement.scrollWidth, over.length, d.title.includes('A demo'),
        d.querySelectorAll('script, img').length].join() }).join(';') }"""
    host = framed(tmp_path, page, [(320, 600), (360, 800), (1280, 900)], script)
    found = re.search(r'data-found="([^"]*)"', chromium(tmp_path, host, "--window-size=1280,2400", "--dump-dom"))[1]
    assert found == "320,320,0,true,0;360,360,0,true,0;1280,1280,0,true,0"


SHOTS = [((360, 800), "light"), ((360, 800), "dark"), ((1280, 900), "light"), ((1280, 900), "dark")]


@browser
@pytest.mark.parametrize(("size", "scheme"), SHOTS)
def test_screenshots_show_a_page_in_both_schemes(size, scheme, metrics, tmp_path):
    image = pytest.importorskip("PIL.Image")
    page = write_report(metrics, tmp_path / "report.html")
    dark = ["--force-dark-mode"] if scheme == "dark" else []
    shot = tmp_path / "shot.png"
    window = "--window-size={},{}".format(*size)
    chromium(tmp_path, framed(tmp_path, page, [size]), window, f"--screenshot={shot}", *dark)
    pixels = np.asarray(image.open(shot).convert("RGB"))[: size[1], : size[0]]
    assert pixels.shape[:2] == size[::-1]
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50, "a blank page has one colour"
    accent = (147, 176, 255) if scheme == "dark" else (36, 80, 184)
    assert np.sum(np.all(pixels == accent, axis=-1)) > 20, "the headline's figure is in the accent of the scheme"
    assert (pixels.mean() < 60) if scheme == "dark" else (pixels.mean() > 200)
