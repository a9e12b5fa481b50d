"""The page on a policy's codes: safe with hostile texts, and it says what codes.json says."""

import copy
import html
import re

import pytest

from penchant.policy.reading import read_codes
from penchant.report_codes import teaser, write_codes
from penchant.report_html import escape
from tests.policy.tiny_codes import pairs, policy
from tests.test_report import HOSTILE, Page, browser
from tests.test_report_align import widths


@pytest.fixture(scope="module")
def read():
    return read_codes(policy(), pairs(), prompts=2, max_new_tokens=6, shuffles=20, show_progress=False)


@pytest.fixture
def found(read):
    made = copy.deepcopy(read)
    made["data"]["name"] = "demo"
    return {"title": "Codes", "created": "2026-01-02", **made, "cost": {"total_seconds": 61.0, "peak_memory_mb": 900}}


@pytest.fixture
def hostile(found):
    def spoil(value):
        if isinstance(value, str):
            return HOSTILE + value
        if isinstance(value, list):
            return [spoil(v) for v in value]
        return {k: spoil(v) for k, v in value.items()} if isinstance(value, dict) else value

    kept = [{name: row[name] for name in ("weights", "unit")} for row in found["agreement"]]  # not from the data
    spoilt = spoil(found)
    for row, ours in zip(spoilt["agreement"], kept, strict=True):
        row |= ours
    return spoilt


def made(found, tmp_path):
    return Page(write_codes(found, tmp_path / "codes.html"))


def test_page_loads_nothing_and_hostile_texts_stay_texts(found, hostile, tmp_path):
    good, bad = made(found, tmp_path), made(hostile, tmp_path)
    assert not re.search(r"https?:|url\(|@import|javascript:", good.source)
    assert [tag for tag, _ in bad.tags] == [tag for tag, _ in good.tags], "no text may add or close an element"
    assert [set(a) for _, a in bad.tags] == [set(a) for _, a in good.tags], "or add an attribute"
    assert all(href.startswith("#") for href in bad.attributes("href"))


def test_every_code_has_its_words_prompts_and_answers(found, tmp_path):
    text = made(found, tmp_path).text
    for one in found["codes"]:
        for said in (one["name"], one["callers"][0]["text"], one["raises"][0]["text"], *one["answers"]):
            shown = html.unescape(escape(said))
            assert " ".join(shown.split()) in " ".join(text.split())
    assert "About 3.4 of 4 codes are in use; 4 of the 4 shown here change what the policy says." in text
    assert "river 4.0×" in text, "how many times its mean weight the word gives the code"
    assert "4 of 4 codes answer otherwise" in text


def test_a_code_that_does_nothing_is_called_that(found, tmp_path):
    found["codes"][0]["switch_kl"] = 0.001
    text = made(found, tmp_path).text
    assert "3 of the 4 shown here change" in text
    assert "Switching to this code hardly changes anything." in text


def test_agreement_is_claimed_only_above_chance(found, tmp_path):
    text = made(found, tmp_path).text
    assert "source: best codes follow it above chance: the prior's." in text
    assert "user_id: best codes follow it no more than by chance." in text
    del found["agreement"]
    assert "#agreement" not in made(found, tmp_path).attributes("href")


def test_warnings_lead_and_codes_left_out_are_listed(found, tmp_path):
    found["warnings"] = ["The posterior has collapsed: try <less>."]
    found["shown"] = found["shown"][:2]
    page = made(found, tmp_path)
    assert page.source.index("The posterior has collapsed:</strong> try &lt;less&gt;.") < page.source.index("<nav")
    left = sum(one["weight"] for one in found["codes"][2:])
    assert f"2 codes share {100 * left:.1f}% of the weight." in page.text
    assert "#code-3" not in page.attributes("href")


def test_without_answers_there_is_no_empty_part(found, tmp_path):
    found["answers"] |= {"prompts": [], "expectation": []}
    assert "#answers" not in made(found, tmp_path).attributes("href")


def test_links_lead_somewhere(found, tmp_path):
    page = made(found, tmp_path)
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {h[1:] for h in page.attributes("href")} <= set(ids)


def test_long_texts_are_cut_at_a_word():
    assert teaser("one two three four", 13) == "…three four"
    assert teaser("one\n two", 13) == "one two"
    assert teaser("x" * 50, 30) == "…" + "x" * 30


@browser
@pytest.mark.parametrize("which", ["found", "hostile"])
def test_no_width_scrolls_sideways(which, request, tmp_path):
    page = write_codes(request.getfixturevalue(which), tmp_path / "codes.html")
    page.write_text(page.read_text(encoding="utf-8").replace("<details>", "<details open>"), encoding="utf-8")
    assert widths(tmp_path, page) == "320,320,0;360,360,0;1280,1280,0"
