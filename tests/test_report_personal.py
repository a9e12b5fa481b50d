"""The pages of a fit of people and of pretraining: safe with hostile ids and texts, whole without any part."""

import copy
import random
import re

import pytest

from penchant.report_clap import write_clap_report
from penchant.report_people import LABELLED, LONGEST, Place, place_labels, scatter, short
from penchant.report_personal import DRAWN, LISTED, write_personal_report
from tests.test_report import HOSTILE, Page, browser, figure
from tests.test_report_align import widths

NAMES = ("ann", "bob", "cleo", "dan", "eve", "fay")


def fitted(names):
    """Every part that a fit of these people can write."""
    drawn = random.Random(0)
    side = {"name": "demo.jsonl", "people": len(names), "pairs": 800, "prompts": 120, "skipped": 2, "sources": {}}
    return {
        "title": "People of demo.jsonl",
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {"penchant": "0.1.0", "torch": "2.13.0"},
        "seed": 3,
        "warnings": ["2 of 6 people have fewer than 5 pairs: ann, bob."],
        "data": {"train": side, "test": {**side, "name": "held out", "strangers": 2}},
        "system": {
            "folder": "runs/personal",
            "base": "smollm2-135m-instruct",
            "dtype": "bfloat16",
            "latent": 32,
            "full": False,
            "rewards": True,
            "population": True,
            "people": 9,
            "bytes_each": 3211.4,
            "z": {"nats_per_token": 1.21, "plain": 1.31, "prior": 1.29, "active_units": 18.0, "responses": 200.0},
        },
        "accuracy": {
            "taste_own": figure(0.712, 240),
            "taste_pooled": figure(0.668, 240),
            "latent_own": figure(0.61, 240),
            "latent_pooled": figure(0.55, 240),
            "longer": figure(0.524, 240),
        },
        "gain": {"taste": figure(0.044, 240), "latent": figure(0.06, 240)},
        "people": [
            {
                "user_id": name,
                "version": 1,
                "pairs": drawn.randint(4, 40),
                "held_out": 100 - i if i < 100 else 1,
                "taste_own": 0.5 + 0.4 * drawn.random(),
                "taste_pooled": 0.5 + 0.2 * drawn.random(),
                "latent_own": 0.6,
                "latent_pooled": 0.5,
                "longer": 0.5,
                "gain": figure(0.05 * drawn.random(), 20),
            }
            for i, name in enumerate(names)
        ],
        "win_rates": {
            "prompts": 8,
            "overall": figure(0.66, 48),
            "people": [{"user_id": name, "changed": 7, **figure(0.5 + 0.4 * drawn.random(), 8)} for name in names[:6]],
        },
        "map": {
            "people": [{"user_id": name, "x": drawn.gauss(0, 0.5), "y": drawn.gauss(0, 0.3)} for name in names],
            "explained": [0.62, 0.21],
            "prompts": 32,
        },
        "examples": [
            {
                "prompt": f"Why is the sky blue, {number}?",
                "population": "Light scatters.",
                "people": [{"user_id": name, "text": f"Dear {name}, light scatters."} for name in names[:5]]
                + [{"user_id": name, "text": "Light scatters."} for name in names[5:6]],
            }
            for number in range(2)
        ],
        "cost": {
            "population_seconds": 12.0,
            "fit_seconds": 3.4,
            "people_per_second": 1.76,
            "judge_seconds": 20.0,
            "answer_seconds": 40.0,
            "total_seconds": 82.0,
            "peak_memory_mb": 2412,
        },
    }


@pytest.fixture
def metrics():
    return fitted(NAMES)


@pytest.fixture
def pretrained():
    """Every part that pretraining can write."""
    return {
        "title": "Personal LLM from demo.jsonl",
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {"penchant": "0.1.0"},
        "seed": 3,
        "warnings": ["z is hardly used: it saves nothing."],
        "data": {"name": "demo.jsonl", "prompts": 120, "skipped": 2, "given": None},
        "system": {"folder": "runs/personal", "base": "smollm2-135m-instruct", "dtype": "bfloat16", "latent": 32}
        | {"adapter": "shift"},
        "z": {
            "gain": 2.5,
            "gain_ci_low": 1.5,
            "gain_ci_high": 3.5,
            "nats_per_token": 1.21,
            "plain": 1.3125,
            "prior": 1.29,
            "active_units": 18.0,
            "mutual_information": 4.1,
            "contrastive_accuracy": 0.61,
            "responses": 200.0,
        },
        "sampling": {"answers_each": 8, "max_new_tokens": 48, "answers": 960, "new_tokens": 40_000, "seconds": 61.0},
        "settings": {"epochs": 1, "prompts": 8, "learning_rate": 1e-3, "standard_kl": False},
        "log": [
            {"loss": 70 - i, "nats_per_token": 1.4 - i / 100, "kl": i / 10, "contrastive": 0.0, "gradient": 1.0}
            for i in range(20)
        ],
        "cost": {"total_seconds": 820.4, "peak_memory_mb": 3412},
    }


def spoil(value):
    """Every string as bad as it gets."""
    if isinstance(value, str):
        return HOSTILE + value
    if isinstance(value, list):
        return [spoil(v) for v in value]
    return {k: spoil(v) for k, v in value.items()} if isinstance(value, dict) else value


@pytest.fixture
def hostile(metrics):
    return spoil(metrics)


@pytest.fixture
def hostile_pretraining(pretrained):
    return spoil(pretrained)


@pytest.fixture
def many():
    return fitted([f"user-{i:04}-{'x' * 300}" for i in range(1000)])


def made(metrics, tmp_path, write=write_personal_report):
    return Page(write(metrics, tmp_path / "new" / "report.html"))


@pytest.mark.parametrize(("which", "write"), [("metrics", write_personal_report), ("pretrained", write_clap_report)])
def test_page_loads_nothing_and_hostile_texts_stay_texts(which, write, request, tmp_path):
    metrics = request.getfixturevalue(which)
    good, bad = made(metrics, tmp_path, write), made(spoil(metrics), tmp_path, write)
    assert not re.search(r"https?:|//|url\(|@import|javascript:", good.source)
    assert [tag for tag, _ in bad.tags if tag != "text"] == [tag for tag, _ in good.tags if tag != "text"]
    assert [set(a) for tag, a in bad.tags if tag != "text"] == [set(a) for tag, a in good.tags if tag != "text"]
    assert all(href.startswith("#") for href in bad.attributes("href"))
    assert "<script>document.title='pwned'</script>" in bad.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u200b\u202a-\u202e\u2066-\u2069\ufeff]", bad.source)


def test_result_leads_in_plain_words(metrics, tmp_path):
    page = made(metrics, tmp_path)
    says = (
        "A person's own taste is right on 71.2% of 240 held-out pairs (68.2–74.2), +4.4 points against the pooled one"
    )
    assert f"{says} (+1.4 to +7.4)." in page.text
    assert page.source.index("fewer than 5 pairs:</strong> ann, bob") < page.source.index("<nav")
    for text in (
        "pooled: 66.8%",
        "3,211 bytes each",
        "1 min 22 s",
        "left out: 2",
        "18 of 32 active",
        "their mean z, and a taste",
        "direction 1 (62% of the spread)",
        "5 of 6 people are answered otherwise",
        "The judge is that person's own taste",
    ):
        assert text in page.text, text


def test_without_tastes_z_leads(metrics, tmp_path):
    for key in ("taste_own", "taste_pooled"):
        del metrics["accuracy"][key]
        for one in metrics["people"]:
            del one[key]
    del metrics["gain"]["taste"], metrics["win_rates"]
    metrics["system"]["rewards"] = False
    page = made(metrics, tmp_path)
    assert "A person's own p(z | x) is right on 61.0% of 240 held-out pairs (58.0–64.0), +6.0 points" in page.text
    assert "Answers won" not in page.text
    assert "and a taste" not in page.text
    assert "#wins" not in page.attributes("href")


def test_every_part_may_be_missing_or_no_number(metrics, pretrained, tmp_path):
    """Each alone, each as null or empty, each pair of keys inside a part, each figure as NaN, and all at once."""
    for whole, write in ((metrics, write_personal_report), (pretrained, write_clap_report)):
        for key, part in whole.items():
            for empty in (None, {}):
                made({**whole, key: empty}, tmp_path, write)
            for inner in part if isinstance(part, dict) else ():
                made({**whole, key: {**part, inner: None}}, tmp_path, write)
                if isinstance(part[inner], float):
                    page = made({**whole, key: {**part, inner: float("nan")}}, tmp_path, write)
                    assert not re.search(r"\bnan\b", page.source)
        assert made({}, tmp_path, write).attributes("href") == []
    for key in metrics["people"][0]:
        made({**metrics, "people": [None, *({**one, key: None} for one in metrics["people"])]}, tmp_path)
    for key in ("people", "win_rates", "map", "examples"):
        rows = metrics[key] if isinstance(metrics[key], list) else metrics[key]["people"]
        for inner in rows[0]:
            spoilt = copy.deepcopy(metrics)
            rows = spoilt[key] if isinstance(spoilt[key], list) else spoilt[key]["people"]
            for row in rows:
                row[inner] = None
            made(spoilt, tmp_path)
    assert "No accuracy was measured" in made({}, tmp_path).text
    assert "not measured" in made({}, tmp_path, write_clap_report).text


def test_of_very_many_people_some_are_shown(many, tmp_path):
    del many["examples"]
    page = made(many, tmp_path)
    assert len(page.source) < 400_000
    assert f"The {DRAWN} with the most held-out pairs of 1,000 people" in page.text
    bars = [attrs for _, attrs in page.tags if attrs.get("class") == "bar"]
    assert len(bars) == 2 * DRAWN
    assert f"{LISTED - DRAWN} more" in page.text
    dots = re.findall(r'<circle class="accent" cx="[\d.]+" cy="[\d.]+" r="3"', page.source)
    assert len(dots) == 1000
    assert "Names are left out where there are many" in page.text
    assert "x" * LONGEST not in page.source  # a long id is cut,
    assert page.text.count("user-0000") > 2  # and known again


def test_bars_are_as_long_as_their_shares(metrics, tmp_path):
    page = made(metrics, tmp_path)
    found = [float(attrs["width"]) for _, attrs in page.tags if attrs.get("class") == "bar"]
    ordered = sorted(metrics["people"], key=lambda one: one["taste_pooled"] - one["taste_own"])
    wanted = [304 * one[key] for one in ordered for key in ("taste_own", "taste_pooled")]
    assert found == pytest.approx(wanted, abs=0.06)


def test_the_map_has_one_scale_and_room_for_everybody():
    places = [Place("a", 1.0, 0.0), Place("b", 0.0, 1.0), Place("c", -2.0, 0.5), Place("d", 0.0, 0.0)]
    drawn = scatter(places, "all", "x", "y")
    dots = [(float(x), float(y)) for x, y in re.findall(r'<circle[^>]* cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    (ax, ay), (bx, by), (cx, cy), (x, y) = dots
    unit = ax - x
    assert unit > 20
    assert (ay, bx) == pytest.approx((y, x), abs=0.2)
    assert y - by == pytest.approx(unit, abs=0.2)  # up is larger
    assert (cx - x, y - cy) == pytest.approx((-2 * unit, 0.5 * unit), abs=0.3)
    height = float(re.search(r'viewBox="0 0 320 ([\d.]+)"', drawn)[1])
    assert all(40 <= px <= 312 and 24 <= py <= height - 40 for px, py in dots)
    assert f">{short('x' * 300)}</text>" in scatter([Place("x" * 300, 1.0, 1.0)], "all", "x", "y")
    assert f"rotate(45 {x:g} {y:g})" in drawn.replace(".0 ", " ").replace(".0)", ")")


@pytest.mark.parametrize("count", [1, 5, LABELLED])
def test_labels_lie_over_nothing_and_within_the_frame(count):
    drawn = random.Random(count)
    dots = [(drawn.uniform(50, 300), drawn.uniform(40, 250)) for _ in range(count)]
    dots[-1] = dots[0]  # two at one place
    names = [f"person {i}" * (1 + i % 2) for i in range(count)]
    found = place_labels(names, dots, (40, 320, 24, 260))
    assert len(found) >= count / 2
    for number, label in enumerate(found):
        left, right, top, bottom = label.box
        assert 40 <= left < right <= 320
        assert 24 <= top < bottom <= 260
        assert not any(left < x < right and top < y < bottom for x, y in dots)
        for other in found[:number]:
            a, b, c, d = other.box
            assert right <= a or b <= left or bottom <= c or d <= top


def test_names_are_short_and_told_apart():
    assert short("ann") == "ann"
    one, other = short("a" * 500 + "1"), short("a" * 500 + "2")
    assert one != other
    assert len(one) == LONGEST
    assert short("a\n\u202eb") == "a [U+202E]b"


def test_pages_are_usable_without_eyes_or_mouse(metrics, pretrained, tmp_path):
    for whole, write in ((metrics, write_personal_report), (pretrained, write_clap_report)):
        page = made(whole, tmp_path, write)
        ids = page.attributes("id")
        assert len(ids) == len(set(ids))
        assert {h[1:] for h in page.attributes("href")} | set(page.attributes("aria-labelledby")) == set(ids)
        pictures = [attrs for tag, attrs in page.tags if tag == "svg"]
        assert all(
            a.get("aria-hidden") == "true" or (a["role"] == "img" and len(a["aria-label"]) > 40) for a in pictures
        )
    described = " ".join(made(metrics, tmp_path).attributes("aria-label"))
    place = metrics["map"]["people"][0]
    assert f"ann at {place['x']:.2f}, {place['y']:.2f}" in described


@browser
@pytest.mark.parametrize("which", ["metrics", "hostile", "many", "pretrained", "hostile_pretraining"])
def test_no_width_scrolls_sideways(which, request, tmp_path):
    write = write_clap_report if "pretrain" in which else write_personal_report
    page = write(request.getfixturevalue(which), tmp_path / "report.html")
    page.write_text(page.read_text(encoding="utf-8").replace("<details>", "<details open>"), encoding="utf-8")
    assert widths(tmp_path, page) == "320,320,0;360,360,0;1280,1280,0"
