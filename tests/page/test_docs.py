"""The page of the API works under the page's own headers, and forgets a key with its tab."""

from __future__ import annotations

from tests.contract.conftest import KEY, RunningGateway
from tests.page.browser import Browser

MODELS = "[id=operations-ask-list_models_v1_models_get]"
KEPT = "[sessionStorage.length, localStorage.length, document.cookie]"


def test_an_endpoint_is_tried_with_a_key_that_is_not_kept(browser: Browser, locked: RunningGateway):
    page = browser.page()
    page.call("Page.navigate", url=f"{locked.url}/docs")
    page.wait("document.querySelector('.authorize')")
    page.click(".btn.authorize")
    page.wait("document.querySelector('.auth-container input')")
    page.click(".auth-container input")
    page.type(KEY)
    page.press("Enter")
    page.wait("document.querySelector('.btn.authorize.locked')")
    page.click(".btn-done")
    page.click(f"{MODELS} .opblock-summary-control")
    for button in ("try-out__btn", "execute"):
        page.wait(f"document.querySelector('{MODELS} .{button}')")
        page.click(f"{MODELS} .{button}")
    page.wait_text(f"{MODELS} .live-responses-table tbody .response-col_status", "200")
    assert page.js(KEPT) == [0, 0, ""]
    assert page.complaints() == []
    page.call("Page.reload")
    page.wait("document.querySelector('.btn.authorize.unlocked')")
