"""The page of an align run: safe with hostile texts, whole without any part, and as loud as what is wrong."""

import copy
import json
import re

import pytest

from penchant.cli.report import report
from penchant.report_align import write_align_report
from penchant.report_curves import DRAWN, thinned
from tests.test_report import HOSTILE, Page, browser, chromium, figure, framed

STEPS = 20


@pytest.fixture
def metrics():
    """Every part that a run with codes can write."""
    side = {"name": "hh", "pairs": 1013, "prompts": 1000, "skipped": 2, "sources": {"harmless": 500, "helpful": 513}}
    return {
        "title": "penchant align, dpo with 8 codes",
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {"penchant": "0.1.0", "torch": "2.13.0"},
        "seed": 3,
        "data": {"train": side, "test": side},
        "policy": {
            "base": "smollm2-135m-instruct",
            "dtype": "bfloat16",
            "dtype_reason": "AMX",
            "loss": "dpo",
            "beta": 0.1,
            "label_smoothing": 0.05,
            "codes": 8,
            "kl_weight": 0.05,
            "latent": {"codes": 8, "posterior": "concat", "temperature": 1.0},
            "lora": {"rank": 16, "alpha": 32, "layers": list(range(30))},
            "trainable": 4_884_480,
            "parameters": 139_400_000,
        },
        "accuracy": {
            "overall": figure(0.671, ties=3),
            "by_source": {"harmless": figure(0.7, 500, ties=0), "helpful": figure(0.62, 513, ties=3)},
        },
        "baselines": {"longer text": figure(0.524), "reference log-probability": figure(0.55)},
        "codes": {
            "n": 1013,
            "kl": 0.31,
            "perplexity": 5.2,
            "top_share": 0.41,
            "usage": [0.41, 0.25, 0.14, 0.1, 0.05, 0.03, 0.02, 0.0],
            "prior_entropy": 1.2,
            "prior_spread": 0.44,
            "accuracy_prior": figure(0.671),
            "accuracy_posterior": figure(0.685),
            "gap": 0.014,
            "warnings": [],
        },
        "history": [
            {
                "step": 5 * i,
                "epoch": i / STEPS,
                "loss": 0.693 - 0.01 * i,
                "accuracy": 0.5 + 0.01 * i,
                "margin": 0.02 * i,
                "kl": 0.001 * i,
                "g": (i - 1) / (STEPS - 1),
                "perplexity": 8 - 0.2 * i,
                "top_share": 0.2 + 0.01 * i,
                "gap": 0.001 * i,
                "learning_rate": 2e-4 * (1 - i / STEPS),
                "seconds": 4.0,
            }
            for i in range(1, STEPS + 1)
        ],
        "examples": [
            {
                "prompt": "Why is the sky blue?",
                "base": "Because.",
                "policy": "Light scatters.",
                "codes": {"3": "Ask me."},
            }
        ],
        "cost": {
            "tokens": 800_000,
            "tokens_per_second": 2945,
            "reference_seconds": 170.2,
            "train_seconds": 631.0,
            "step_seconds": 6.31,
            "steps": 100,
            "truncated": 4,
            "total_seconds": 820.4,
            "peak_memory_mb": 3412,
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
    spoilt["examples"][0]["codes"] = {HOSTILE: HOSTILE}
    return spoilt


def made(metrics, tmp_path):
    return Page(write_align_report(metrics, tmp_path / "new" / "report.html"))


def test_page_loads_nothing_and_hostile_texts_stay_texts(metrics, hostile, tmp_path):
    good, bad = made(metrics, tmp_path), made(hostile, tmp_path)
    assert not re.search(r"https?:|//|url\(|@import|javascript:", good.source)
    assert [tag for tag, _ in bad.tags] == [tag for tag, _ in good.tags], "no text may add or close an element"
    assert [set(a) for _, a in bad.tags] == [set(a) for _, a in good.tags], "or add an attribute"
    assert all(href.startswith("#") for href in bad.attributes("href"))
    assert "<script>document.title='pwned'</script>" in bad.text


def test_result_leads_in_plain_words(metrics, tmp_path):
    text = made(metrics, tmp_path).text
    assert "The policy sides with the chosen response in 67.1% of 1,013 held-out pairs (64.1–70.1)" in text
    assert "always choosing the longer text: 52.4%." in text
    assert "log-probability more than the other's" in text
    for says in (
        "5.2of 8",
        "+1.4",
        "KL 0.31 nats",
        "rank 16, 30 layers",
        "3.5% of all",
        "10 min 31 s",
        "z from the prior",
    ):
        assert says in text, says
    assert "Not shown to beat" not in text
    simpo = {**metrics, "policy": {**metrics["policy"], "loss": "simpo", "gamma": 0.5}}
    assert "mean log-probability a token" in made(simpo, tmp_path).text


def test_a_baseline_within_the_interval_is_a_warning(metrics, tmp_path):
    metrics["baselines"]["reference log-probability"] = figure(0.66)
    text = made(metrics, tmp_path).text
    assert "Not shown to beat a simple baseline" in text
    assert "reference log-probability: 66.0%" in text


def test_collapse_stands_before_everything_else(metrics, tmp_path):
    metrics["codes"]["warnings"] = ["The posterior has collapsed: try <b>this</b>.", "No colon here."]
    page = made(metrics, tmp_path)
    assert page.source.index("The posterior has collapsed:</strong> try &lt;b&gt;") < page.source.index("<nav")
    assert "<strong>No colon here.</strong>" in page.source
    assert page.source.count('class="note warning"') == 2


def test_a_policy_without_codes_speaks_of_none(metrics, tmp_path):
    metrics["policy"] |= {"codes": 0, "latent": None}
    del metrics["codes"]
    for row in metrics["history"]:
        for name in ("kl", "g", "perplexity", "top_share", "gap"):
            del row[name]
    page = made(metrics, tmp_path)
    assert "Latent codesnone" in page.text
    assert not {"#latent-codes", "#collapse"} & set(page.attributes("href"))
    assert "Codes in use" not in page.text
    assert "#training" in page.attributes("href")


def test_every_part_may_be_missing(metrics, tmp_path):
    """Each alone, each as null or empty, each pair of keys inside a part, and all at once."""
    for key, part in metrics.items():
        for empty in (None, {}):
            made({**metrics, key: empty}, tmp_path)
        for inner in part if isinstance(part, dict) and key != "data" else ():
            if (key, inner) != ("accuracy", "overall"):
                made({**metrics, key: {**part, inner: None}}, tmp_path)
    rows = [{k: None if i % 2 else v for k, v in row.items()} for i, row in enumerate(metrics["history"])]
    made({**metrics, "history": rows}, tmp_path)
    made({**metrics, "history": metrics["history"][:1]}, tmp_path)
    assert "No accuracy was measured" in made({}, tmp_path).text


def test_curves_are_described_and_stand_where_their_values_say(metrics, tmp_path):
    page = made(metrics, tmp_path)
    described = " ".join(a.get("aria-label", "") for tag, a in page.tags if tag == "svg")
    for says in ("training loss: 0.683 at 5", "KL of posterior from prior: 0.001 at 5", "0.493 at 100"):
        assert says in described, says
    assert "Pairs by their prompt's best code, largest first: 0.41, 0.25" in described
    heights = [float(tag["height"]) for name, tag in page.tags if tag.get("class") == "bar"]
    assert heights == pytest.approx([96 * u / 0.41 for u in metrics["codes"]["usage"]], abs=0.1)


def test_long_histories_are_averaged_not_cut():
    rows = [{"step": i, "loss": float(i)} for i in range(1, 1001)]
    found = thinned(rows, ("loss", "kl"))
    assert len(found) == DRAWN
    assert found[0] == {"step": 25, "loss": 13.0, "kl": None}
    assert found[-1]["step"] == 1000
    assert thinned(rows[:3], ("loss",)) == rows[:3]
    assert thinned([], ("loss",)) == []


def test_report_verb_draws_either_kind_of_run(metrics, tmp_path, capsys):
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    report(str(tmp_path))
    assert "The policy sides with" in (tmp_path / "report.html").read_text(encoding="utf-8")
    plain = copy.deepcopy(metrics)
    del plain["policy"]
    (tmp_path / "metrics.json").write_text(json.dumps(plain))
    report(str(tmp_path))
    assert "Right on <em>67.1%" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "report.html" in capsys.readouterr().out


def test_page_is_usable_without_eyes_or_mouse(metrics, tmp_path):
    page = made(metrics, tmp_path)
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {h[1:] for h in page.attributes("href")} | set(page.attributes("aria-labelledby")) == set(ids)
    pictures = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert all(a.get("aria-hidden") == "true" or (a["role"] == "img" and len(a["aria-label"]) > 40) for a in pictures)


@browser
@pytest.mark.parametrize("which", ["metrics", "hostile"])
def test_no_width_scrolls_sideways(which, request, tmp_path):
    page = write_align_report(request.getfixturevalue(which), tmp_path / "report.html")
    page.write_text(page.read_text(encoding="utf-8").replace("<details>", "<details open>"), encoding="utf-8")
    assert widths(tmp_path, page) == "320,320,0;360,360,0;1280,1280,0"


def widths(tmp_path, page):
    """For three widths: the window's, the page's, and how many boxes reach over the edge."""
    script = """onload = () => { document.body.dataset.found =
      [...document.querySelectorAll('iframe')].map(({contentWindow: f}) => {
      const d = f.document, boxes = 'section, section > *, figure, svg[role], dd, .tiles div, details';
      const over = [...d.querySelectorAll(boxes)].filter(e => e.getBoundingClientRect().right > f.innerWidth + 1);
      return [f.innerWidth, d.documentElement.scrollWidth, over.length].join() }).join(';') }"""
    host = framed(tmp_path, page, [(320, 600), (360, 800), (1280, 900)], script)
    return re.search(r'data-found="([^"]*)"', chromium(tmp_path, host, "--window-size=1280,2400", "--dump-dom"))[1]
