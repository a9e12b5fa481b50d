"""The explorer in headless Chromium: filled in, by keyboard alone, on a phone, in the dark, with hostile texts."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penchant.serve import browse
from penchant.serve.keys import Keys
from penchant.serve.refusals import Refused
from penchant.serve.server import Server
from penchant.serve.service import Service
from tests.serve.tiny_explorer import HOSTILE, explorer

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
CHROMIUM = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on PATH")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
KINDS = ("linear", "sae", "coded", "personal")
SECONDS = 30_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, "--disable-sync"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Server]]:
    browse.PAIRS, before = 12, browse.PAIRS
    found = {kind: Server(explorer(kind)) for kind in KINDS}
    for server in found.values():
        server.__enter__()
    yield found
    for server in found.values():
        server.__exit__()
    browse.PAIRS = before


class Visit:
    """A page, and what must not happen on it."""

    def __init__(self, browser: Any, server: Server, ready: bool = True, **context: Any) -> None:
        self.context = browser.new_context(accept_downloads=True, **context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(SECONDS)
        self.server, self.wrong, self.expected = server, [], []
        self.page.on("dialog", lambda dialog: (self.wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("console", lambda line: line.type in ("error", "warning") and self.wrong.append(line.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", self._asked)
        self.page.goto(server.url)
        if ready:
            self.until("!document.getElementById('ask').disabled")

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((f"{self.server.url}/", f"blob:{self.server.url}/")):
            self.wrong.append(f"request to {request.url}")

    def compare(self, **fields: str) -> Any:
        """Fill in, compare, and wait for the reasons."""
        for name, text in fields.items():
            self.page.fill(f"#{name}", text)
        self.page.click("#ask")
        self.page.wait_for_selector("#shaded .text")
        return self.page.inner_text("#verdict .sentence >> nth=0")

    def until(self, true: str) -> None:
        """Wait for an expression; the page's policy lets Playwright evaluate none inside the page by itself."""
        end = time.monotonic() + SECONDS / 1000
        while not self.page.evaluate(true):
            assert time.monotonic() < end, f"never: {true}; {self.page.inner_text('body')}"
            self.page.wait_for_timeout(20)

    def tab(self, name: str) -> None:
        self.page.click(f"#tab-{name}")

    def drop(self, text: str | bytes, name: str = "answers.jsonl") -> str:
        """Give a file; what is said when it is done."""
        payload = text.encode() if isinstance(text, str) else text
        self.page.set_input_files("#choose", {"name": name, "mimeType": "application/json", "buffer": payload})
        self.until("document.getElementById('file-said').textContent.includes('scored')")
        return str(self.page.inner_text("#file-said"))

    def downloaded(self, button: str) -> str:
        with self.page.expect_download() as found:
            self.page.click(button)
        return Path(found.value.path()).read_bytes().decode()

    def end(self) -> None:
        self.context.close()
        assert [line for line in self.wrong if not any(part in line for part in self.expected)] == []


@pytest.fixture
def visit(browser: Any, servers: dict[str, Server]) -> Iterator[Any]:
    visits: list[Visit] = []

    def begin(kind: str = "linear", **context: Any) -> Visit:
        visits.append(Visit(browser, servers[kind], **context))
        return visits[-1]

    yield begin
    for each in visits:
        each.end()


def lines(*rows: Any) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


# Two answers


def test_the_example_is_compared_by_one_click(visit: Any) -> None:
    here = visit()
    said = here.compare()
    assert "is better with a probability of" in said or "Neither" in said
    assert here.page.inner_text("#verdict .ends").count("score") == 2
    assert here.page.locator("#shaded mark").count() > 3
    assert "has no named features" in here.page.inner_text("#speaks")
    assert here.page.inner_text("#said") == said
    hidden = [here.page.locator(f"#tab-{name}").is_visible() for name in ("features", "codes", "people")]
    assert not any(hidden)


def test_swapped_answers_swap_the_verdict(visit: Any) -> None:
    here = visit()
    one = here.compare(first="Gladly! What about this one?", second="No. 7")
    here.page.click("#swap")
    here.page.click("#ask")
    here.until(f"document.querySelector('#verdict .sentence').textContent !== {json.dumps(one)}")
    other = here.page.inner_text("#verdict .sentence")
    assert one.replace("first", "second") == other or one.replace("second", "first") == other


def test_an_empty_answer_is_told_before_anything_is_sent(visit: Any) -> None:
    here = visit()
    here.page.fill("#second", "  ")
    here.page.click("#ask")
    assert here.page.inner_text("#said") == "The second answer is empty; type one."
    assert here.page.evaluate("document.activeElement.id") == "second"


def test_features_speak_for_each_answer_and_shade_tokens(visit: Any) -> None:
    here = visit("sae")
    here.compare()
    assert here.page.locator("#speaks table").count() >= 1
    choices = here.page.locator("#choices input")
    assert choices.count() > 1
    choices.nth(1).check(force=True)
    assert "it says where the feature reacts" in here.page.inner_text("#shade-says")
    here.tab("features")
    here.page.wait_for_selector("#features-found details")
    assert here.page.locator("#features-found mark").count() > 3
    assert "demo pairs" in here.page.inner_text("#features-said")


def test_codes_are_shown_for_a_pair_and_on_their_tab(visit: Any) -> None:
    here = visit("coded")
    here.compare()
    assert here.page.locator("#speaks tbody tr").count() > 1
    here.tab("codes")
    here.page.wait_for_selector("#codes-found details")


def test_somebody_is_chosen_by_the_beginning_of_their_name(visit: Any) -> None:
    here = visit("personal")
    here.page.fill("#person-search", "an")
    here.until("[...document.querySelectorAll('#person-list li')].map(e => e.textContent).join() === 'ann'")
    here.page.keyboard.press("ArrowDown")
    here.page.keyboard.press("Enter")
    assert "in the taste of ann" in here.page.inner_text("#person-says")
    here.compare()
    assert [text.lower() for text in here.page.locator("#verdict h3").all_inner_texts()] == [
        "in the taste of ann",
        "in everybody’s taste",
    ]
    here.page.click("#person-clear")
    here.until("!document.getElementById('person-list').hidden")
    here.page.click("#ask")  # the list closes under this click
    here.until("document.querySelectorAll('#verdict .taste').length === 1")


def test_the_list_of_people_is_never_whole(visit: Any) -> None:
    here = visit("personal")
    here.tab("people")
    here.page.click("#find button")
    here.page.wait_for_selector("#people-found li")
    assert here.page.locator("#people-found li").count() == 20
    here.page.click("#people-more")
    here.until("document.querySelectorAll('#people-found li').length === 27")
    here.page.click("#people-found button:has-text('ann')")
    here.page.wait_for_selector("#person-found details")
    here.page.click("#person-use")
    assert here.page.input_value("#person-search") == "ann"
    assert here.page.is_visible("#pair")


# Texts that mean harm


@pytest.mark.parametrize("kind", KINDS)
def test_markup_in_every_text_is_shown_as_text(visit: Any, kind: str) -> None:
    here = visit(kind)
    if kind == "personal":
        here.page.fill("#person-search", "<")
        here.page.wait_for_selector("#person-list li")
        here.page.keyboard.press("ArrowDown")
        here.page.keyboard.press("Enter")
    here.compare(prompt=HOSTILE, first=HOSTILE, second=f"{HOSTILE} again")
    shown = here.page.inner_text("#shaded .text >> nth=0")
    assert "<script>alert(1)</script>" in shown
    assert "[U+202E]" in shown
    for choice in here.page.locator("#choices input").all():
        choice.check(force=True)
    here.tab("file")
    here.drop(lines({"prompt": HOSTILE, "response": HOSTILE, HOSTILE: 1}, HOSTILE), f"{HOSTILE}.jsonl")
    assert "<script>" in here.page.inner_text("#rows")
    for name in ("features", "codes", "people"):
        if here.page.is_visible(f"#tab-{name}"):
            here.tab(name)
            if name == "people":
                here.page.click("#find button")
            here.page.wait_for_selector(f"#{name}-found > *")
    assert here.page.evaluate("document.querySelectorAll('script').length") == 1
    assert here.page.evaluate("document.querySelectorAll('img').length") == 0


def test_the_policy_stops_a_script_that_slipped_in(visit: Any) -> None:
    here = visit()
    here.expected += ["Content Security Policy", "requires 'Trusted"]
    here.page.evaluate("""() => { const one = document.createElement('script');
        try { one.textContent = 'window.slipped = 1'; } catch { one.append('window.slipped = 1'); }
        document.body.append(one); }""")
    assert here.page.evaluate("window.slipped") is None
    markup = "(() => { try { document.body.innerHTML = '<p>'; return 1; } catch { return 0; } })()"
    assert here.page.evaluate(markup) == 0


# A file


def test_a_file_of_every_kind_of_row_is_scored_sorted_and_saved(visit: Any) -> None:
    here = visit()
    here.tab("file")
    message = [{"role": "user", "content": "Name a tree."}]
    rows = [
        {"prompt": "Name a river.", "response": "Gladly! One.", "id": 7},
        {"prompt": "Name a river.", "chosen": "Gladly!", "rejected": "No."},
        {"prompt": message, "responses": ["=1+1", "Gladly!", "No."]},
        {"prompt": "é你 \u2028", "response": [{"role": "assistant", "content": 'Yes, "so".'}]},
    ]
    said = here.drop("\ufeff" + lines(*rows[:2], "{not json", "", {"prompt": "a", "response": " "}, [1], *rows[2:]))
    assert said == "4 rows of answers.jsonl scored, 3 lines left out."
    here.page.click("#bad-title")
    assert here.page.locator("#bad-lines li").all_inner_texts() == [
        "Line 3: it is not JSON.",
        "Line 5: its response is empty.",
        "Line 6: it is no JSON object.",
    ]
    assert here.page.locator("#rows tr").count() == 4
    saved = [json.loads(line) for line in here.downloaded("#save-jsonl").split("\n") if line]
    assert [{name: row[name] for name in rows[i]} for i, row in enumerate(saved)] == rows
    assert set(saved[0]) == {"prompt", "response", "id", "score"}
    assert saved[1]["probability"] > 0.5 if saved[1]["chosen_score"] > saved[1]["rejected_score"] else True
    assert len(saved[2]["scores"]) == 3
    table = here.downloaded("#save-csv")
    assert table.startswith("prompt,response,id,score,chosen,")
    assert table.count("\r\n") >= 5
    here.page.click("#columns button:has-text('Line')")
    here.page.click("#columns button:has-text('Line')")
    assert here.page.locator("#rows tr td:first-child").all_inner_texts() == ["8", "7", "2", "1"]
    assert here.page.locator("#columns th[aria-sort=descending]").count() == 1


def test_scores_of_a_file_are_those_of_two_answers(visit: Any) -> None:
    here = visit()
    prompt, first, second = "Name a star.", "Gladly! This one.", "No. So there."
    here.compare(prompt=prompt, first=first, second=second)
    ends = here.page.inner_text("#verdict .ends")
    here.tab("file")
    here.drop(lines({"prompt": prompt, "chosen": first, "rejected": second}))
    saved = json.loads(here.downloaded("#save-jsonl"))
    for name in ("chosen_score", "rejected_score"):
        shown = here.page.evaluate("async x => (await import('./static/page.js')).number(x)", saved[name])
        assert f"score {shown}" in ends


def test_a_large_file_can_be_stopped_and_keeps_what_was_scored(visit: Any) -> None:
    here = visit()
    here.tab("file")
    many = lines(*({"prompt": f"Say {i}", "response": f"Answer {i}"} for i in range(20_000)))
    buffer = {"name": "many.jsonl", "mimeType": "application/json", "buffer": many.encode()}
    here.page.set_input_files("#choose", buffer)
    here.until("document.getElementById('bar').value > 0")
    here.page.click("#stop")
    here.until("document.getElementById('file-said').textContent.startsWith('Stopped')")
    assert here.page.locator("#rows tr").count() > 10


def test_a_row_the_server_refuses_is_named_and_the_rest_goes_on(visit: Any) -> None:
    here = visit()
    here.expected.append("status of 413")
    here.tab("file")
    good = {"prompt": "Name a tool.", "response": "Gladly!"}
    said = here.drop(lines(good, {"prompt": "a", "response": "long " * 50_000}, good))
    assert said == "2 rows of answers.jsonl scored, 1 line left out."
    here.page.click("#bad-title")
    assert here.page.inner_text("#bad-lines").startswith("Line 2: Item 0 is 250,001 characters long")


# Trouble


def test_a_key_is_asked_for_once_and_kept_in_the_tab(browser: Any, tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json", make=True)
    key = keys.add("ann")
    with Server(explorer("linear", keys=keys)) as server:
        here = Visit(browser, server, ready=False)
        here.expected.append("status of 401")
        here.page.fill("#key-text", "wrong")
        here.page.keyboard.press("Enter")
        here.page.wait_for_selector("#trouble:not([hidden])")
        assert here.page.inner_text("#trouble") == "The server does not know that key; type another."
        here.page.fill("#key-text", key)
        here.page.keyboard.press("Enter")
        here.until("document.title.startsWith('tiny linear')")
        assert here.page.is_hidden("#key")
        assert here.page.is_hidden("#trouble")
        here.compare()
        here.page.reload()
        here.until("document.title.startsWith('tiny linear')")
        assert here.page.is_hidden("#key")
        here.end()


def test_a_busy_or_absent_server_is_told_in_a_sentence(
    visit: Any, browser: Any, servers: dict[str, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = visit()
    here.expected += ["status of 429", "ERR_"]

    async def busy(*_: Any) -> None:
        raise Refused(429, "too much is waiting.", Retry_After="1")

    with monkeypatch.context() as patch:
        patch.setattr(Service, "score", busy)
        here.page.click("#ask")
        here.page.wait_for_selector("#said.bad")
        assert here.page.inner_text("#said") == "The server is busy; try again in 1 s."
        assert here.page.is_enabled("#ask")
    here.context.set_offline(True)
    here.page.click("#ask")
    here.until("document.getElementById('said').textContent.includes('cannot be reached')")
    here.context.set_offline(False)
    here.compare()


# Keyboard, phone, dark


def test_the_keyboard_alone_is_enough(visit: Any) -> None:
    here = visit()
    keys = here.page.keyboard
    keys.press("Tab")
    assert here.page.evaluate("document.activeElement.className") == "skip"
    box = here.page.evaluate("(e => [e.left, e.right])(document.activeElement.getBoundingClientRect())")
    assert box[0] >= 0, "the link is seen when it has the focus"
    seen = []
    for _ in range(9):
        keys.press("Tab")
        seen.append(here.page.evaluate("document.activeElement.id"))
        style = here.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert style != "none", f"the focus on {seen[-1]} is seen"
        if seen[-1] == "ask":
            break
    assert seen == ["tab-compare", "prompt", "first", "second", "ask"]
    keys.press("Enter")
    here.page.wait_for_selector("#shaded .text")
    here.page.focus("#tab-compare")
    keys.press("ArrowRight")
    assert here.page.evaluate("document.activeElement.id") == "tab-file"
    assert here.page.is_visible("#file")
    assert here.page.is_hidden("#compare")
    keys.press("Tab")
    assert here.page.evaluate("document.activeElement.id") == "choose"
    keys.press("Shift+Tab")
    keys.press("Home")
    here.page.focus("#prompt")
    keys.type(" More.")
    keys.press("Control+Enter")
    here.until("document.getElementById('said').textContent.includes('probability')")


def overflowing(page: Any) -> Any:
    return page.evaluate("""() => document.documentElement.scrollWidth > innerWidth
        ? [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)
          .map(e => e.outerHTML.slice(0, 80)) : []""")


@pytest.mark.parametrize(("kind", "width"), [("linear", 320), *((kind, 360) for kind in KINDS)])
def test_no_tab_scrolls_sideways_on_a_phone(visit: Any, kind: str, width: int) -> None:
    here = visit(kind, viewport={"width": width, "height": 780}, has_touch=True)
    here.compare(first="w" * 300, second="Two words.")
    assert overflowing(here.page) == []
    here.tab("file")
    here.drop(lines({"prompt": "p" * 500, "chosen": "w" * 400, "rejected": "b"}, "x" * 300), f"{'n' * 200}.jsonl")
    here.page.click("#bad-title")
    assert overflowing(here.page) == []
    for name in ("features", "codes", "people"):
        if here.page.is_visible(f"#tab-{name}"):
            here.tab(name)
            if name == "people":
                here.page.click("#find button")
            here.page.wait_for_selector(f"#{name}-found > *")
            assert overflowing(here.page) == []
    small = here.page.evaluate("""() => [...document.querySelectorAll('button, input, textarea')]
        .filter(e => e.offsetParent && e.getBoundingClientRect().height < 24).map(e => e.id || e.outerHTML)""")
    assert small == [], "everything can be hit with a thumb"


def contrast(one: list[int], other: list[int]) -> float:
    def light(colour: list[int]) -> float:
        parts = [c / 255 for c in colour]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_can_be_read(visit: Any, scheme: str) -> None:
    here = visit("sae", color_scheme=scheme)
    here.compare()
    pairs = here.page.evaluate("""() => {
      const numbers = text => text.match(/[\\d.]+/g).map(Number);
      const ground = e => { for (; e; e = e.parentElement) {
        const c = numbers(getComputedStyle(e).backgroundColor);
        if (c.length < 4 || c[3] === 1) return c.slice(0, 3); } };
      return [...document.querySelectorAll('h1, h2, h3, p, label, button, td, th, mark, .text, textarea, small, span')]
        .filter(e => e.offsetParent && !e.matches('.bar span, .skip') && e.textContent.trim())
        .map(e => [numbers(getComputedStyle(e).color).slice(0, 3), ground(e), e.outerHTML.slice(0, 90)]); }""")
    assert len(pairs) > 60
    assert [what for ink, ground, what in pairs if contrast(ink, ground) < 4.5] == []
    page = here.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert page == ("rgb(18, 19, 23)" if scheme == "dark" else "rgb(246, 246, 243)")
