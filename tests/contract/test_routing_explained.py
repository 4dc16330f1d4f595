"""``/v1/routing:explain`` tells what the router does, and what it tells is what answers."""

from __future__ import annotations

import base64

import pytest
import torch

from adapter_store.routing import coefficients
from server.cli.main import main
from tests.contract.conftest import KEY, RunningGateway
from tests.contract.publishing import PICTURE, QUESTION, Publisher

URL = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"


@pytest.fixture(scope="module")
def version(publisher: Publisher) -> str:
    return publisher.publish(publisher.state(21)).version


def explain(running: RunningGateway, **body: str) -> dict:
    answer = running.http.post("/v1/routing:explain", json={"question": QUESTION, "image": URL, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_it_names_the_increments_that_answer(running: RunningGateway, publisher: Publisher, version: str):
    found = explain(running, model=f"strata@{version}")
    state = publisher.state(21)
    query = publisher.queries.encode([QUESTION], None, state.routing)
    expected = coefficients(state, query)[0]
    assert (found["version"], found["routing"], found["answered_by"]) == (version, "text", "digits")
    assert found["answered_by_base"] is False
    assert found["contextual_share"] == 0.0
    assert found["tasks"] == {"digits": 1.0}
    told = torch.zeros(state.rows)
    for row in found["increments"]:
        told[row["row"]] = row["coefficient"]
        assert row["selected"]
        assert row["coefficient"] == pytest.approx(row["intrinsic"] + row["contextual"], abs=1e-5)
    assert torch.allclose(told, expected, atol=1e-5)
    form = {"question": QUESTION, "model": f"strata@{version}"}
    same = running.http.post("/v1/routing:explain", data=form, files={"image": ("p.png", PICTURE)}).json()
    asked = {"question": QUESTION, "model": f"strata@{version}", "image": URL}
    assert running.http.get("/v1/routing:explain", params=asked).json() == same == found


def test_the_base_needs_no_increments(running: RunningGateway):
    found = explain(running, model="strata@base")
    assert found["answered_by_base"] is True
    assert (found["increments"], found["answered_by"], found["routing"]) == ([], None, None)


def test_explaining_counts_no_request(running: RunningGateway, version: str):
    series = {"task": "digits"}
    before = running.metric("strata_routed_requests_total", **series)
    explain(running, model=f"strata@{version}")
    assert running.metric("strata_routed_requests_total", **series) == before


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"question": " "}, 400, "question"),
        ({"question": "x", "model": "strata@v99"}, 404, "model"),
        ({"question": "x", "image": "data:image/png;base64,AAAA"}, 400, None),
    ],
)
def test_what_cannot_be_explained_is_refused(
    running: RunningGateway, body: dict, status: int, param: str | None
):
    for answer in (
        running.http.post("/v1/routing:explain", json=body),
        running.http.get("/v1/routing:explain", params=body),
    ):
        assert answer.status_code == status, answer.text
        assert param is None or answer.json()["error"]["param"] == param


def test_the_command_line_shows_it(
    running: RunningGateway, version: str, capsys: pytest.CaptureFixture[str], tmp_path
):
    picture = tmp_path / "p.png"
    picture.write_bytes(PICTURE)
    url = str(running.http.base_url).rstrip("/")
    asked = [
        "explain",
        QUESTION,
        "--image",
        str(picture),
        "--model",
        f"strata@{version}",
        "--url",
        url,
        "--api-key",
        KEY,
    ]
    assert main(asked) == 0
    assert "digits" in capsys.readouterr().out
