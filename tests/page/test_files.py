"""The page is small, whole, locked up, and no program that asks for JSON ever meets it."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from server.page.files import INDEX, NAMES, PAGE_PATHS, page_file
from server.page.router import wants_page
from tests.contract.conftest import RunningGateway

FOLDER = Path(__file__).resolve().parents[2] / "server" / "page" / "static"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


def test_every_file_of_the_folder_is_served_and_no_other():
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(NAMES)
    assert sum(len(page_file(name).content) for name in NAMES) < 150_000
    with pytest.raises(KeyError):
        page_file("../router.py")


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith((".js", ".html"))])
def test_no_text_becomes_markup_and_nothing_is_fetched_from_elsewhere(name: str):
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 400
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|localStorage"
    assert re.search(forbidden, text) is None
    addresses = set(re.findall(r"https?://[^\"'\s]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}


def test_the_markup_holds_no_script_and_no_style_of_its_own():
    text = page_file(INDEX).content.decode()
    assert re.search(r"<style|\sstyle=|\son[a-z]+=", text) is None
    assert re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL) == [""]
    assert set(re.findall(r'(?:src|href)="(/page/[^"]+)"', text)) <= PAGE_PATHS


def test_modules_import_only_what_is_served():
    for name in NAMES:
        imports = re.findall(r'from "(\./[^"]+)"', page_file(name).content.decode())
        assert {path.removeprefix("./") for path in imports} <= set(NAMES), name


@pytest.mark.parametrize(
    ("accept", "page"),
    [
        (BROWSER, True),
        ("text/html", True),
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("application/json, text/html;q=0.5", False),
        ("text/html;q=0", False),
        ("text/html;q=much", False),
    ],
)
def test_who_gets_the_page(accept: str, page: bool):
    assert wants_page(accept) is page


def test_browsers_get_the_page_and_programs_the_json_without_a_key(locked: RunningGateway):
    with httpx.Client(base_url=locked.url, trust_env=False) as stranger:
        assert stranger.get("/").json()["name"] == "Strata"
        found = stranger.get("/", headers={"accept": BROWSER})
        assert (found.status_code, found.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert found.headers["vary"] == stranger.get("/").headers["vary"] == "accept"
        assert "default-src 'none'" in found.headers["content-security-policy"]
        assert "unsafe" not in found.headers["content-security-policy"]
        for path in sorted(PAGE_PATHS):
            answer = stranger.get(path)
            assert answer.status_code == 200, path
            assert answer.headers["x-content-type-options"] == "nosniff"
            again = stranger.get(path, headers={"if-none-match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b""), path
            other = stranger.get(path, headers={"if-none-match": '"other"'})
            assert other.content == page_file(path.removeprefix("/page/")).content
        assert stranger.get("/page/main.js").headers["content-type"] == "text/javascript; charset=utf-8"
        assert stranger.get("/v1/models").status_code == 401


@pytest.mark.parametrize(
    "name", ["nothing.js", "index.html", "..%2Frouter.py", "%2e%2e/files.py", "main.js%00"]
)
def test_nothing_else_is_a_file_of_the_page(locked: RunningGateway, name: str):
    answer = locked.http.get(f"/page/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["type"]
