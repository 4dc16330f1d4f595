"""Asking on the page: pictures come in by paste, drop and file, answers stream, and say why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.contract.conftest import RunningGateway, wait_for
from tests.contract.pictures import png
from tests.contract.publishing import QUESTION, Publisher
from tests.page.browser import CONTROL, SHIFT, Browser, Page

ENDED = '.turn:last-child .answer[aria-busy="false"] .answer-head .number'
DONE = f"document.querySelector({ENDED!r})?.innerText"
PASTE = """(async () => {
  const pen = document.createElement('canvas').getContext('2d');
  pen.canvas.width = pen.canvas.height = 28;
  pen.fillStyle = 'red';
  pen.fillRect(0, 0, 28, 28);
  const blob = await new Promise((take) => pen.canvas.toBlob(take, 'image/png'));
  await navigator.clipboard.write([new ClipboardItem({'image/png': blob})]);
})()"""
COUNT_CHANGES = """window.changes = 0;
new MutationObserver((seen) => { window.changes += seen.filter((one) => one.target.data).length; })
  .observe(document.querySelector('#conversation'), {subtree: true, characterData: true})"""


@pytest.fixture(scope="module")
def version(running: RunningGateway, publisher: Publisher) -> str:
    """Return a taught version that is stable."""
    published = publisher.publish(publisher.state(21)).version
    path = "/v1/adapters/strata/aliases/stable"
    assert running.http.put(path, json={"version": published}).status_code == 200
    wait_for(lambda: running.http.get("/ready").json()["version"] == published)
    return published


@pytest.fixture
def red(tmp_path: Path) -> Path:
    file = tmp_path / "red.png"
    file.write_bytes(png("red"))
    return file


def ask(page: Page, question: str) -> str:
    """Type a question, press Enter, and return the answer once it is whole."""
    before = page.js("document.querySelectorAll('.turn').length")
    page.click("#question")
    page.type(question)
    page.press("Enter")
    page.wait(f"document.querySelectorAll('.turn').length === {before + 1} && {DONE}")
    return page.text(".turn:last-child .answer-text")


def asked(running: RunningGateway, model: str, question: str = QUESTION, image: bytes | None = None) -> dict:
    from tests.contract.conftest import chat_body

    body = chat_body(question, image=image, model=model, temperature=0)
    del body["max_tokens"]
    return running.http.post("/v1/chat/completions", json=body).json()


def test_a_dropped_picture_is_asked_about_and_the_answer_streams(
    page: Page, running: RunningGateway, version: str, red: Path
):
    page.drop("#chat", red)
    page.wait("!document.querySelector('#composer-picture').hidden")
    assert not page.shown("#drop-hint")
    page.js(COUNT_CHANGES)
    told = ask(page, QUESTION)
    assert told.strip() == asked(running, "strata")["choices"][0]["message"]["content"].strip()
    assert page.js("window.changes") > 3, "the text came in one piece"
    assert version in page.text(".answer-head")
    assert page.shown(".asked img")
    assert page.js("document.activeElement.id") == "question"
    assert ask(page, QUESTION) == told, "the picture stays, and each question is asked on its own"
    assert page.js("document.querySelectorAll('.asked img').length") == 1


def test_a_pasted_picture_is_asked_about_and_pasted_text_is_text(page: Page, running: RunningGateway):
    page.allow_clipboard(running.url)
    page.click("#question")
    page.js(PASTE)
    page.press("v", CONTROL, ("paste",))
    page.wait("!document.querySelector('#composer-picture').hidden")
    assert page.js("document.querySelector('#composer-thumb').src.startsWith('data:image/png')")
    page.js("navigator.clipboard.writeText('Which digit?')")
    page.press("v", CONTROL, ("paste",))
    page.wait("document.querySelector('#question').value === 'Which digit?'")
    page.click("#remove-picture")
    assert not page.shown("#composer-picture")


def test_a_large_photo_is_made_small_and_what_is_no_picture_is_told(page: Page, tmp_path: Path):
    photo = tmp_path / "photo.png"
    Image.effect_noise((1600, 1200), 80).convert("RGB").save(photo)
    assert photo.stat().st_size > 1_000_000
    page.choose("#picture-file", photo)
    page.wait("document.querySelector('#composer-thumb').src.startsWith('data:image/jpeg')")
    assert page.js("document.querySelector('#composer-thumb').src.length") < 300_000
    assert ask(page, "What is shown?") is not None
    assert page.js("document.querySelectorAll('.answer .fault').length") == 0
    words = tmp_path / "words.png"
    words.write_text("no picture at all" * 20_000)
    page.choose("#picture-file", words)
    page.wait_text("#notice", "words.png is no picture")


def test_a_conversation_goes_on_only_when_it_is_asked_to(page: Page, version: str, red: Path):
    page.choose("#picture-file", red)
    page.wait("!document.querySelector('#composer-picture').hidden")
    ask(page, QUESTION)
    page.js("""window.sent = []; const ask = window.fetch; window.fetch = (path, how) => {
      if (path.includes('completions') || path.includes('explain')) window.sent.push(JSON.parse(how.body));
      return ask(path, how); }""")
    ask(page, "And now?")
    page.click("#go-on")
    ask(page, "And then?")
    alone, after = page.js("window.sent.map((each) => each.messages)")
    assert [len(alone), len(after)] == [1, 3]
    assert alone[0]["content"][0]["type"] == "image_url"
    assert after[0] == alone[0]
    assert after[2]["content"] == "And then?"
    page.click(".turn:last-child .answer-foot button[aria-expanded]")
    page.wait_text(".turn:last-child .why", "chosen by its first question")
    assert page.js("window.sent.at(-1).question") == "And now?", "the router looks at the first one"


def test_two_versions_side_by_side(page: Page, running: RunningGateway, version: str, red: Path):
    page.choose("#picture-file", red)
    page.wait("!document.querySelector('#composer-picture').hidden")
    page.click("#compare")
    assert page.js("document.querySelector('#model-2').value") == "strata@base"
    ask(page, QUESTION)
    page.wait("document.querySelectorAll('.answer[aria-busy=\"false\"]').length === 2")
    left, right = page.js("[...document.querySelectorAll('.answer-text')].map((each) => each.innerText)")
    heads = page.js("[...document.querySelectorAll('.answer-head')].map((each) => each.innerText)")
    assert version in heads[0]
    assert "base" in heads[1]
    assert left != right
    base = asked(running, "strata@base")["choices"][0]["message"]["content"]
    assert right.strip() == base.strip()
    edges = page.js(
        "[...document.querySelectorAll('.answer')].map((each) => each.getBoundingClientRect().left)"
    )
    assert edges[0] < edges[1]


def test_why_this_answer(page: Page, version: str, red: Path):
    page.choose("#picture-file", red)
    page.wait("!document.querySelector('#composer-picture').hidden")
    ask(page, QUESTION)
    page.click(".answer-foot button[aria-expanded]")
    page.wait_text(".why", "Increments that answer")
    why = page.text(".why")
    assert "digits" in why
    assert "100 %" in why
    widths = page.js(
        "[...document.querySelectorAll('.why .bar-track i')].map((e) => e.getBoundingClientRect().width)"
    )
    assert max(widths) > 50
    assert page.js("document.querySelector('.answer-foot button').getAttribute('aria-expanded')") == "true"


def test_the_base_says_that_no_layer_answered(page: Page, version: str):
    page.js("document.querySelector('#model').value = 'strata@base'")
    ask(page, QUESTION)
    page.click(".answer-foot button[aria-expanded]")
    page.wait_text(".why", "plain base")


def test_thumbs_and_a_correction_reach_the_server(
    page: Page, version: str, red: Path, running: RunningGateway
):
    page.choose("#picture-file", red)
    page.wait("!document.querySelector('#composer-picture').hidden")
    ask(page, QUESTION)
    page.click(".thumb.up")
    page.wait_text(".answer-foot", "Thank you")
    assert page.js("document.querySelector('.thumb.up').getAttribute('aria-pressed')") == "true"
    page.click(".thumb.down")
    page.wait("document.querySelector('.correction') && document.activeElement.tagName === 'INPUT'")
    page.wait("document.querySelectorAll('.correction input')[1].value === 'digits'")
    page.type("seven")
    page.press("Enter")
    page.wait_text(".answer-foot", "Kept for “digits”: 1 of 8 corrections")
    waiting = running.http.get("/v1/feedback").json()["data"]
    assert [(each["task"], each["count"]) for each in waiting] == [("digits", 1)]
    page.click("#tab-teach")
    page.wait_text("#pending", "1 of 8 corrections")


def correct(page: Page, picture: Path, question: str, right: str, *, task: str) -> None:
    """Ask about a picture and say by the keyboard what the right answer is, and of which task."""
    page.choose("#picture-file", picture)
    page.wait("!document.querySelector('#composer-picture').hidden")
    ask(page, question)
    page.click(".thumb.down")
    page.wait("document.activeElement.closest('.correction')")
    page.type(right)
    page.press("Tab")
    page.js("document.activeElement.select()")
    page.type(task)
    page.press("Enter")


def test_a_task_that_is_found_late_does_not_mix_with_what_is_typed(page: Page, version: str, red: Path):
    page.choose("#picture-file", red)
    page.wait("!document.querySelector('#composer-picture').hidden")
    ask(page, "Which one is it?")
    page.js(
        "window.plain = window.fetch, window.fetch = async (path, ...rest) => {"
        "  if (!path.includes('routing')) return window.plain(path, ...rest);"
        "  await new Promise((go) => { window.go = go; });"
        "  const answer = await window.plain(path, ...rest);"
        "  setTimeout(() => { window.found = true; }, 200);"
        "  return answer; }"
    )
    page.click(".thumb.down")
    page.wait("document.activeElement.closest('.correction') && window.go")
    page.type("eight")
    page.press("Tab")
    page.js("window.go()")
    page.wait("window.found")
    page.type("eights")
    assert page.js("document.activeElement.value") == "eights"


def test_what_becomes_of_a_correction_is_told_beside_the_answer(
    page: Page, version: str, red: Path, running: RunningGateway
):
    correct(page, red, "Which one is it?", "eight", task="eights")
    page.wait_text(".answer-foot", "they are learned once there are 8 or 60 s after the first")
    page.click(".answer-foot .note button")
    page.wait_text(".answer-foot", "in the queue to be learned as part of “eights”")
    queue = running.gateway.link.queue()
    claim = queue.claim("w")
    assert claim is not None
    assert claim.job.task == "eights"
    claim.update(phase="train")
    page.wait_text(".answer-foot", "It is being learned as part of “eights”")
    gate = {"passed": False, "reasons": ["forgot digits by 0.13"], "promotion": "held_back"}
    claim.finish("succeeded", decision="expand", result_version="v9", gate=gate)
    page.wait_text(".answer-foot", "Learned as v9, but held back: forgot digits by 0.13")
    page.click("#tab-teach")
    page.wait_text("#pending", "The last: Learned as v9, but held back: forgot digits by 0.13")
    assert page.js("document.querySelectorAll('#pending li button').length") == page.js(
        "[...document.querySelectorAll('#pending li')].filter((li) => li.innerText.includes(' of 8 ')).length"
    )


def test_a_correction_that_is_replaced_elsewhere_is_said_to_be(
    page: Page, version: str, red: Path, running: RunningGateway
):
    correct(page, red, "Which one is replaced?", "eight", task="replaced")
    page.wait_text(".answer-foot", "Kept for “replaced”")
    store = running.gateway.feedback.store
    (kept,) = store._known("replaced").all()
    assert store.keep("replaced", replace(kept, right="nine"), red.read_bytes())
    page.wait_text(".answer-foot", "a later answer to the same question replaced it")
    page.forgiven.append("status of 404 (Not Found)")


def test_a_wrong_answer_without_a_picture_is_only_rated(page: Page, version: str):
    ask(page, QUESTION)
    page.click(".thumb.down")
    page.wait_text(".answer-foot", "Noted. With a picture")
    assert page.js("document.querySelectorAll('.correction').length") == 0


def test_an_error_is_told_in_the_servers_words_and_the_next_question_works(page: Page, version: str):
    page.js("document.querySelector('#model').append(new Option('gone', 'strata@v99'))")
    page.js("document.querySelector('#model').value = 'strata@v99'")
    page.click("#question")
    page.type("Which digit?")
    page.press("Enter")
    page.wait_text(".answer .fault", "v99")
    page.js("document.querySelector('#model').value = 'strata'")
    ask(page, "Which digit?")
    assert page.js("document.querySelectorAll('.turn:last-child .fault').length") == 0
    page.forgiven.append("status of 404 (Not Found)")


def test_escape_stops_an_answer_and_a_new_conversation_is_empty(browser: Browser, running: RunningGateway):
    page = browser.page().open(f"{running.url}/")
    page.click("#question")
    page.type("first line")
    page.press("Enter", SHIFT)
    page.type("second line")
    assert page.js("document.querySelector('#question').value") == "first line\nsecond line"
    page.press("Enter")
    page.wait("document.querySelector('.answer[aria-busy=\"true\"]')")
    page.press("Escape")
    page.wait_text(".answer-head", "stopped")
    assert "first line\nsecond line" in page.text(".asked")
    page.click("#new-chat")
    assert page.js("document.querySelectorAll('.turn').length") == 0
    assert page.shown("#welcome")
    assert page.complaints() == []
