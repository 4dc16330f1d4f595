"""Memory on the page: the matrix as a heat map, layers with what they changed, aliases that move."""

from __future__ import annotations

import httpx
import pytest

from tests.contract.conftest import RunningGateway, wait_for
from tests.contract.publishing import Publisher
from tests.page.browser import Browser, Page
from tests.page.lineage import lineage

STABLE = "/v1/adapters/strata/aliases/stable"


@pytest.fixture(scope="module")
def versions(running: RunningGateway, publisher: Publisher) -> list[str]:
    """Return three versions; the second is stable, the third was held back."""
    made = lineage(publisher)
    for version in made[:2]:
        assert running.http.put(STABLE, json={"version": version}).status_code == 200
    wait_for(lambda: running.http.get("/ready").json()["version"] == made[1])
    return made


@pytest.fixture
def memory(page: Page, versions: list[str], running: RunningGateway) -> Page:
    running.http.put(STABLE, json={"version": versions[1]})
    page.click("#tab-memory")
    page.wait_text("#versions", versions[0])
    return page


def stable(http: httpx.Client) -> str:
    return http.get(STABLE).json()["version"]


def test_the_matrix_is_a_table_with_a_color_for_every_score(memory: Page, versions: list[str]):
    memory.wait("document.querySelectorAll('.heat tbody tr').length === 3")
    rows = memory.js("[...document.querySelectorAll('.heat tr')].map((row) => row.innerText)")
    assert "digits" in rows[0]
    assert "animals" in rows[0]
    assert rows[1].startswith("base")
    assert rows[2].startswith(versions[0])
    assert "94 %" in rows[2]
    assert rows[3].startswith(versions[1])
    scopes = memory.js("[...document.querySelectorAll('.heat tbody th')].every((th) => th.scope === 'row')")
    assert scopes
    low, high = memory.js(
        "['.heat .base .cell', '.heat .taught'].map((each) =>"
        " getComputedStyle(document.querySelector(each)).backgroundColor)"
    )
    assert low != high
    figures = memory.text("#figures")
    assert "average accuracy" in figures
    by_task = memory.js("[...document.querySelectorAll('#by-task tbody tr')].map((row) => row.innerText)")
    assert len(by_task) == 2
    assert "1 %" in by_task[0], "what digits forgot"


def test_every_layer_says_what_it_changed(memory: Page, versions: list[str]):
    layers = memory.js("[...document.querySelectorAll('.layer')].map((each) => each.innerText)")
    assert len(layers) == 4
    held, second, first, base = layers
    assert "Held back: forgot digits" in held
    assert "animals 20 % → 91 %" in second
    assert "digits 93 % (−1)" in second
    assert "stable" in second
    assert "digits 11 % → 94 %" in first
    assert "frozen model" in base


def test_the_matrix_of_another_version_can_be_looked_at(memory: Page, versions: list[str]):
    memory.click(f'[data-version="{versions[0]}"] button')
    memory.wait("document.querySelectorAll('.heat tbody tr').length === 2")
    assert memory.js("document.querySelector('#matrix-version').value") == versions[0]


def test_promote_and_roll_back(memory: Page, versions: list[str], http: httpx.Client):
    memory.click(f'[data-version="{versions[0]}"] button:not(.quiet)')
    memory.wait_text("#confirm-dialog", f"It does not know animals, which {versions[1]} does.")
    memory.press("Escape")
    promote = f'[data-version="{versions[2]}"] button:not(.quiet)'
    memory.click(promote)
    memory.wait_text("#confirm-dialog", "The gate held it back: forgot digits")
    memory.js(
        f"document.querySelector('#confirm-dialog').close(''), document.querySelector({promote!r}).click()"
    )
    memory.wait("document.querySelector('#confirm-dialog').open")
    assert stable(http) == versions[1], (
        "who closes a question promotes nothing, and asked again at once can say yes"
    )
    memory.click("#confirm-reason")
    memory.type("wanted by review")
    memory.press("Enter")
    memory.wait_text("#memory-status", f"“stable” names {versions[2]} now")
    assert "the gate held" in memory.text("#memory-status")
    assert stable(http) == versions[2]
    assert http.get(STABLE).json()["reason"] == "wanted by review"
    memory.wait_text("#state", f"{versions[2]} is served")
    memory.wait_text(f'[data-version="{versions[2]}"]', "stable")
    memory.wait_text(f'[data-version="{versions[2]}"]', "Promoted by hand; the gate had held it back: forgot")
    memory.click("#roll-back")
    memory.wait_text("#confirm-dialog", f"goes back from {versions[2]}")
    memory.click("#confirm-ok")
    memory.wait_text("#memory-status", f"“stable” names {versions[1]} now")
    assert stable(http) == versions[1]


def test_an_alias_that_moved_meanwhile_is_not_moved_again(
    memory: Page, versions: list[str], http: httpx.Client
):
    memory.click(f'[data-version="{versions[2]}"] button:not(.quiet)')
    memory.wait("document.querySelector('#confirm-dialog').open")
    http.put(STABLE, json={"version": versions[0], "reason": "somebody else"})
    memory.click("#confirm-ok")
    memory.wait("document.querySelector('#memory-status').className.includes('fault')")
    assert stable(http) == versions[0]
    memory.forgiven.append("status of 409 (Conflict)")


def test_a_canary_is_started_weighed_and_promoted(memory: Page, versions: list[str], http: httpx.Client):
    memory.wait_text("#canary", "No version is on trial")
    memory.js("document.querySelector('.canary-form select').value = " + repr(versions[0]))
    memory.js("document.querySelector('.canary-form select').dispatchEvent(new Event('change'))")
    memory.js("document.querySelector('.canary-form input').focus()")
    for _ in range(5):
        memory.press("ArrowRight")
    assert "15 %" in memory.text(".canary-form")
    memory.click(".canary-form button")
    memory.wait_text("#canary .roles", f"{versions[0]} answers 15 % of the requests")
    state = http.get("/v1/adapters/strata/canary").json()["canary"]
    assert (state["version"], state["weight"]) == (versions[0], 0.15)
    memory.click("#canary .roles button.primary")
    memory.wait_text("#confirm-dialog", "The canary becomes stable")
    memory.press("Enter")
    memory.wait_text("#canary", "No version is on trial")
    assert http.get("/v1/adapters/strata/canary").json()["canary"] is None


def test_a_trial_can_begin_at_a_version_and_its_share_stands_there(
    memory: Page, versions: list[str], http: httpx.Client
):
    trial = f'[data-version="{versions[0]}"] button[aria-label^="Try"]'
    memory.wait(f"document.querySelector({trial!r})")
    memory.js(f"document.querySelector({trial!r}).focus()")
    memory.press("Enter")
    memory.wait("document.activeElement.type === 'range'")
    assert memory.js("document.querySelector('.canary-form select').value") == versions[0]
    memory.press("Enter")
    memory.wait_text(f'[data-version="{versions[0]}"]', "canary ")
    http.delete("/v1/adapters/strata/aliases/canary")
    memory.wait_text("#canary", "No version is on trial", 15)


def test_the_rule_that_ends_a_canary_is_told_in_words(memory: Page, http: httpx.Client):
    memory.wait("document.querySelectorAll('#canary-rule li').length === 3")
    told = memory.text("#canary-rule")
    for words in http.get("/v1/adapters/strata/canary").json()["rule_in_words"]:
        assert words in told


CONTRASTS = """(() => {
  const pen = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const linear = (part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  const light = (color) => {
    pen.fillStyle = color;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].map((part) => linear(part / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return [...document.querySelectorAll('.heat .cell')].map((cell) => {
    const style = getComputedStyle(cell);
    const [one, other] = [light(style.color), light(style.backgroundColor)].sort((a, b) => b - a);
    return [cell.innerText, (one + 0.05) / (other + 0.05)];
  });
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_every_score_can_be_read_on_its_color(browser: Browser, running: RunningGateway, dark: bool):
    page = browser.page(dark=dark).open(f"{running.url}/")
    page.js(
        "Promise.all([import('/page/heat.js'), import('/page/dom.js')]).then(([heat]) => {"
        " const scores = Array.from({length: 51}, (_, at) => at / 50);"
        " const tasks = scores.map((_, at) => `t${at}`);"
        " document.querySelector('main').append(heat.heatTable("
        "{version: 'v1', tasks, base: scores, rows: [], trained: []}, []));})"
    )
    found = page.js(CONTRASTS)
    assert len(found) == 51
    assert {text: contrast for text, contrast in found if contrast < 4.5} == {}


def test_a_full_memory_fits_a_narrow_screen(browser: Browser, running: RunningGateway, versions: list[str]):
    page = browser.page(width=360, height=740).open(f"{running.url}/#memory")
    page.wait(
        "document.querySelectorAll('.heat tbody tr').length > 1 && document.querySelector('.canary-form')"
    )
    assert page.js("document.documentElement.scrollWidth") <= 360


def test_only_the_newest_versions_are_listed_when_asked(http: httpx.Client, versions: list[str]):
    path = "/v1/adapters/strata/versions"
    some = http.get(path, params={"limit": 2}).json()
    assert [each["version"] for each in some["data"]] == versions[1:]
    assert some["has_more"] is True
    every = http.get(path).json()
    assert [each["version"] for each in every["data"]] == versions
    assert every["has_more"] is False
    assert http.get(path, params={"limit": 0}).status_code == 400
