"""The second look through the whole service: its masks are smaller, so that they tell themselves.

The stand-in's discs have a radius of 8 pixels of the model's input: 20 pixels of the picture of
640 x 480, 0.4 % of it, but a few pixels only where the input is a crop.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from backend.jobs import EncodeRequest
from backend.model import ModelSettings
from backend.results import ResultSettings
from backend.second_look import SecondLookSettings
from backend.service import Service
from backend.store import StoreSettings
from tests.backend.conftest import MakeClient, body, keypoint, mask_of, picture_uri, rectangle
from tests.backend.disc_bundle import write_disc_bundle

FIRST, SECOND, THIRD = keypoint(50, 50), keypoint(51, 50), keypoint(50, 51)
FAR = keypoint(80, 80)
NEAR_THE_BORDER = keypoint(57, 50)  # 45 pixels from the first: a crop of 96 ends at 48
OTHER = keypoint(20, 20, label="Dog")


@pytest.fixture(scope="session")
def small_discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_disc_bundle(tmp_path_factory.mktemp("bundles") / "small", radius_px=8.0)


@pytest.fixture
def client(make_client: MakeClient, small_discs: Path) -> FlaskClient:
    return make_client(
        model=ModelSettings(name=str(small_discs), threads=1),
        second_look=SecondLookSettings(mode="on"),
    )


def service_of(client: FlaskClient) -> Service:
    service: Service = client.application.extensions["edgesam"]
    return service


def ask(client: FlaskClient, *regions: Any, look: bool = False) -> list[int]:
    """Areas of the answered masks in pixels; then `look` waits until the crops are encoded."""
    response = client.post("/predict", json=body(*regions))
    assert response.status_code == 200, response.json
    (prediction,) = response.get_json()["results"]
    if look:
        service_of(client).second_look.encode_waiting()
    return [int(mask_of(region).sum()) for region in prediction["result"]]


def counted(client: FlaskClient, what: str) -> float:
    """A line of /metrics."""
    (line,) = [
        line
        for line in client.get("/metrics").get_data(as_text=True).splitlines()
        if line.startswith(what + " ")
    ]
    return float(line.split()[1])


def outcomes(client: FlaskClient) -> dict[str, float]:
    """How next clicks on small objects were answered."""
    names = ("used", "late", "left")
    return {n: counted(client, f'edgesam_second_looks_total{{outcome="{n}"}}') for n in names}


def encodes(client: FlaskClient) -> float:
    return counted(client, 'edgesam_stage_seconds_count{stage="encode"}')


def test_the_next_click_on_a_small_object_is_answered_on_its_crop(client: FlaskClient) -> None:
    (first,) = ask(client, FIRST, look=True)
    (second,) = ask(client, FIRST, SECOND)
    assert second < first / 2
    assert outcomes(client) == {"used": 1, "late": 0, "left": 0}


def test_a_click_into_a_small_box_is_answered_on_its_crop(client: FlaskClient) -> None:
    box = rectangle(48, 48, 4, 4)
    ask(client, box, look=True)
    ask(client, box, SECOND)
    assert outcomes(client)["used"] == 1


def test_the_next_click_does_not_wait_for_the_crop(client: FlaskClient) -> None:
    (first,) = ask(client, FIRST)
    (second,) = ask(client, FIRST, SECOND)
    assert second > first
    assert outcomes(client) == {"used": 0, "late": 1, "left": 0}
    assert encodes(client) == 1


def test_the_crop_is_encoded_once_the_answer_is_sent(client: FlaskClient) -> None:
    response = client.post("/predict", json=body(FIRST))
    assert encodes(client) == 1
    response.close()
    deadline = time.monotonic() + 20
    while encodes(client) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_crop_serves_all_clicks_that_stay_in_it(client: FlaskClient) -> None:
    ask(client, FIRST, look=True)
    ask(client, FIRST, SECOND, look=True)
    ask(client, FIRST, SECOND, THIRD, look=True)
    assert outcomes(client)["used"] == 2
    assert encodes(client) == 2


def test_clicks_on_the_crop_refine_each_other(
    make_client: MakeClient, tmp_path: Path, client: FlaskClient
) -> None:
    # The stand-in's discs grow by 2 input pixels where it is given a mask input.
    forgetful = write_disc_bundle(tmp_path / "forgetful", radius_px=8.0, refines=False)
    plain = make_client(
        model=ModelSettings(name=str(forgetful), threads=1),
        second_look=SecondLookSettings(mode="on"),
    )
    for one in (client, plain):
        ask(one, FIRST, look=True)
    assert ask(client, FIRST, SECOND) > ask(plain, FIRST, SECOND)
    assert ask(client, FIRST, SECOND, THIRD) > ask(plain, FIRST, SECOND, THIRD)
    assert outcomes(client)["used"] == outcomes(plain)["used"] == 2


@pytest.mark.parametrize(
    ("second", "left"),
    [
        pytest.param(FAR, 0, id="click outside the crop"),
        pytest.param(NEAR_THE_BORDER, 1, id="mask that reaches the crop's border"),
    ],
)
def test_what_leaves_the_crop_is_answered_on_the_whole_image(
    make_client: MakeClient, small_discs: Path, second: Any, left: int
) -> None:
    client, off = (
        make_client(
            model=ModelSettings(name=str(small_discs), threads=1),
            second_look=SecondLookSettings(mode=mode),
            results=ResultSettings(min_region_px=0),  # no disc is a speck
        )
        for mode in ("on", "off")
    )
    for one in (client, off):
        ask(one, FIRST, look=True)
    assert ask(client, FIRST, second) == ask(off, FIRST, second)
    assert outcomes(client) == {"used": 0, "late": 0, "left": left}


def test_switched_off_it_encodes_nothing(make_client: MakeClient, small_discs: Path) -> None:
    off = make_client(
        model=ModelSettings(name=str(small_discs), threads=1),
        second_look=SecondLookSettings(mode="off"),
    )
    ask(off, FIRST, look=True)
    ask(off, FIRST, SECOND, look=True)
    assert encodes(off) == 1
    assert outcomes(off) == {"used": 0, "late": 0, "left": 0}


def test_a_large_object_is_not_looked_at_twice(client: FlaskClient) -> None:
    box = rectangle(20, 20, 30, 30)
    ask(client, box, look=True)
    ask(client, box, keypoint(30, 30), look=True)
    assert encodes(client) == 1
    assert outcomes(client) == {"used": 0, "late": 0, "left": 0}


def test_objects_of_one_request_are_looked_at_each_by_itself(client: FlaskClient) -> None:
    ask(client, FIRST, look=True)
    second, other = ask(client, FIRST, SECOND, OTHER)
    assert outcomes(client)["used"] == 1
    assert second < other / 4
    assert [other] == ask(client, OTHER)


def test_another_process_uses_the_crop(
    make_client: MakeClient, small_discs: Path, tmp_path: Path
) -> None:
    one, another = (
        make_client(
            model=ModelSettings(name=str(small_discs), threads=1),
            store=StoreSettings(cache_dir=tmp_path),
            second_look=SecondLookSettings(mode="on"),
        )
        for _ in range(2)
    )
    ask(one, FIRST, look=True)
    ask(another, FIRST, SECOND)
    assert outcomes(another)["used"] == 1


def test_a_job_for_a_crop_survives_json(client: FlaskClient) -> None:
    service = service_of(client)
    ask(client, FIRST)
    request = EncodeRequest(
        picture_uri(), 4, None, service.models.own.version, False, crop_xyxy=(270, 190, 370, 290)
    )
    arrived = EncodeRequest(**json.loads(json.dumps(asdict(request))))
    assert service.encoding.job(arrived) == "miss"
    assert service.encoding.ahead(request) == "warm"


def test_a_mode_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="on or off"):
        SecondLookSettings(mode="maybe")
