"""The status page through HTTP, of runs that stand-ins have carried out."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from PIL import Image

from backend.app import create_app
from backend.auth import AuthSettings
from backend.effort_rows import AnnotationEffort, EffortRows, RegionEffort
from backend.gate_table import Comparison, gate_table
from backend.run_state import RunState
from backend.settings import Settings
from backend.status_facts import run_facts
from backend.status_text import DASH, minutes, moment
from backend.training import TrainingSettings
from backend.versions import VersionSettings
from tests.backend.told_run import GATE, tell
from tests.backend.training_ground import BETTER, PROJECT, Ground

HERE = f"/training/{PROJECT}"
OURS = {"Origin": "http://localhost"}
"""As a browser says that a form is the page's own; the test client's host is localhost."""
NASTY = "<script>alert('\"Cat\" & dog')</script>"


class Serve:
    """Makes applications over one ground; no trainer is ever started by them."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground

    def __call__(self, **sections: Any) -> FlaskClient:
        sections.setdefault("training", self.ground.settings)
        sections.setdefault("versions", VersionSettings(self.ground.data_dir))
        app = create_app(Settings(model=self.ground.model, **sections))
        app.testing = False
        service = app.extensions["edgesam"]
        service.training._start_process = lambda job: None
        return app.test_client()


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


@pytest.fixture
def serve(ground: Ground) -> Serve:
    return Serve(ground)


@pytest.fixture
def client(serve: Serve) -> Iterator[FlaskClient]:
    with serve() as client:
        yield client


def trained(ground: Ground) -> RunState:
    """A run that was promoted, with everything that its programs leave."""
    run = ground.request()
    version = ground.versions.add(PROJECT, ground.challenger, f"trained by {run.job}")
    ground.versions.promote(PROJECT, version, BETTER)
    tell(ground.runs.folder(run.job))
    return ground.runs.end(replace(run, version=version), "promoted", BETTER)


def halfway(ground: Ground, **state: Any) -> RunState:
    """A run in the middle of its training, which nobody carries out."""
    run = replace(
        ground.request(), stage="training", started_at="2026-11-21T20:00:00+00:00", **state
    )
    ground.runs.save(run)
    training = ground.runs.folder(run.job) / "training"
    training.mkdir()
    rows = [
        {"step": 50, "dice_loss": 0.25, "steps_per_s": 2.0, "eta_min": 12.0},
        {"step": 50, "held_back": {"click_iou": 0.614}},
    ]
    (training / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (training / "plan.json").write_text('{"steps": 200}')
    return run


def text_of(page: str) -> str:
    """What a reader sees, one space between words."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


# --- what is shown ---


def test_a_promoted_run_is_shown_with_its_reason_numbers_and_pictures(
    ground: Ground, client: FlaskClient
) -> None:
    run = ground.trainer().carry_out(ground.request().job)
    tell(ground.runs.folder(run.job))
    page = client.get(HERE).text
    shown = text_of(page)
    assert f"Served now {run.version} Since" in shown
    assert BETTER in shown
    for row in (
        "All prompts 70.2 % 81.0 % +10.8 +5.1 to +16.0 97", "One click 52.2 % 74.3 % +22.1",
        "Nucleus 68.4 % 84.2 % +15.8 61", "Debris 73.3 % 72.1 % -1.2 36",
        "Drawn scenes 74.1 % 73.9 % -0.2 -0.6 to +0.3 320", "4.61 2.27 -2.34",
    ):  # fmt: skip
        assert row in shown
    assert shown.index("promoted") < shown.index("added"), "the newest comes first"
    assert "http-equiv" not in page, "nothing goes on"
    pictures = re.findall(r'src="([^"]+)"', page)
    assert [picture.rpartition(run.job)[2] for picture in pictures] == [
        "/gate/0001.png", "/gate/0002.png", "/training/curves.png",
    ]  # fmt: skip
    for picture in pictures:
        answer = client.get(picture.replace("../", "/"))
        assert answer.mimetype == "image/png"
        Image.open(io.BytesIO(answer.data)).verify()


def test_a_run_that_goes_on_shows_how_far_it_is_and_loads_itself_anew(
    ground: Ground, client: FlaskClient
) -> None:
    run = halfway(ground)
    with ground.runs.carrying_out(run.job):
        page = client.get(HERE).text
    assert '<meta http-equiv="refresh" content="5">' in page
    assert re.search(r'<progress[^>]* value="25"', page)
    shown = text_of(page)
    assert "Step 50 of 200, 12 min left" in shown
    assert "dice loss 0.25" in shown
    assert "Held-out scores so far step click IoU 50 61.4 %" in shown
    assert f"Served now {ground.version(ground.base)} the server's own model" in shown
    assert "interrupted" not in shown
    assert "interrupted" in text_of(client.get(HERE).text), "since nobody carries it out now"
    overview = client.get("/training").text
    assert "http-equiv" in overview
    assert "Project 3" in text_of(overview)


def test_a_project_of_which_nothing_is_known_can_be_started(client: FlaskClient) -> None:
    assert "No project was trained yet." in client.get("/training").text
    sent_on = client.get("/training?project=7")
    assert (sent_on.status_code, sent_on.headers["Location"]) == (303, "training/7")
    page = client.get("/training/7")
    assert page.status_code == 200
    assert 'action="../training/7/start"' in page.text
    assert "Roll back" not in page.text
    assert client.get("/training?project=cats").status_code == 400


def test_an_earlier_run_can_be_looked_at(ground: Ground, client: FlaskClient) -> None:
    earlier = trained(ground)
    newer = ground.runs.end(ground.request(), "failed", "Label more tasks.")
    page = client.get(HERE).text
    assert "Label more tasks." in page
    assert "Go on with the newest run" in page
    assert "gate/0001.png" not in page
    assert "gate/0001.png" in client.get(f"{HERE}?run={earlier.job}").text
    assert client.get(f"{HERE}?run={newer.job}").status_code == 200
    assert client.get(f"/training/4?run={earlier.job}").status_code == 404


def test_a_refused_version_stays_with_its_reason(ground: Ground, client: FlaskClient) -> None:
    ground.behave(promote=False, reason="Worse for the label 'Cat'.")
    run = ground.trainer().carry_out(ground.request().job)
    assert ground.served is None
    shown = text_of(client.get(HERE).text)
    assert "kept, not served" in shown
    assert "Worse for the label &#39;Cat&#39;." in shown
    assert f'name="version" value="{run.version}"' in client.get(HERE).text
    assert "refused" in shown


def test_the_version_that_stands_in_for_a_torn_one_is_shown(
    ground: Ground, client: FlaskClient
) -> None:
    run = trained(ground)
    assert run.version is not None
    assert "answers in its place" not in client.get(HERE).text
    (ground.versions.bundle(run.version) / "decoder.onnx").write_bytes(b"half")
    own, shown = ground.version(ground.base), text_of(client.get(HERE).text)
    assert f"so {own} (the server's own model) answers in its place." in shown
    assert "decoder.onnx" in shown
    assert f"{own} served" in shown


def test_what_people_wrote_is_escaped(ground: Ground, client: FlaskClient) -> None:
    run = trained(ground)
    tell(ground.runs.folder(run.job), reason=NASTY, incumbent=NASTY,
         labels={NASTY: {"objects": 30, "incumbent": 0.5, "challenger": 0.6}})  # fmt: skip
    ground.versions.refuse(PROJECT, ground.version(ground.challenger), NASTY)
    ground.runs.save(replace(run, reason=NASTY, why=NASTY))
    ground.runs.save(replace(ground.request(), why=NASTY, reason=NASTY))
    for path in (HERE, f"{HERE}?run={run.job}", "/training"):
        page = client.get(path).text
        assert "<script" not in page
        assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    "gate",
    [
        pytest.param({}, id="empty"),
        pytest.param({"held_out": 3, "labels": [1], "replay": "x", "pictures": {}}, id="forms"),
        pytest.param({**GATE, "held_out": {"incumbent": {"mean": None}, "interval": [None, 1]},
                      "labels": {"Cat": {"objects": "x", "incumbent": None}}}, id="no numbers"),
    ],
)  # fmt: skip
def test_a_verdict_of_any_form_gives_a_page(
    ground: Ground, client: FlaskClient, gate: dict[str, Any]
) -> None:
    run = halfway(ground)
    (ground.runs.folder(run.job) / "gate.json").write_text(json.dumps(gate))
    assert client.get(HERE).status_code == 200


def test_a_torn_log_and_odd_states_give_a_page(ground: Ground, client: FlaskClient) -> None:
    run = halfway(ground, attempts=3, paused_s=130.0)
    training = ground.runs.folder(run.job) / "training"
    (training / "plan.json").write_text('{"steps": 0}')
    (training / "log.jsonl").write_text('{"step": 4, "eta_min": null, "a_loss": "x"}\n{"st')
    shown = text_of(client.get(HERE).text)
    assert "It was begun 3 times. It stood still for 2 min" in shown
    assert client.get(f"/training/{'9' * 40}").status_code == 200


def test_without_a_folder_the_page_names_the_setting(serve: Serve) -> None:
    client = serve(versions=VersionSettings())
    assert "EDGESAM_DATA_DIR" in client.get("/training").text
    assert client.get(HERE).status_code == 200


def test_the_effort_meter_is_shown_by_week_label_and_version(
    ground: Ground, client: FlaskClient
) -> None:
    assert "Prompts" not in client.get(HERE).text
    rows = EffortRows(ground.data_dir)
    regions = (RegionEffort(NASTY, "aaaaaaaaaaaa", 3, untouched=True, iou=0.875),
               RegionEffort(NASTY, "aaaaaaaaaaaa", 2), RegionEffort("Dog"))  # fmt: skip
    at = "2026-11-17T10:00:00Z"
    rows.note(PROJECT, AnnotationEffort(1, 1, at, at, regions))
    page = client.get(HERE).text
    assert "<script" not in page
    shown = text_of(page)
    assert "aaaaaaaaaaaa 2 2.50 50.0 % 87.5 %" in shown
    assert f"2026-W47 Dog by hand 1 {DASH} {DASH} {DASH}" in shown
    assert f"Project {PROJECT}" in text_of(client.get("/training").text)


# --- headers ---


def test_the_page_allows_itself_nothing_but_its_own_style_and_pictures(
    ground: Ground, client: FlaskClient
) -> None:
    trained(ground)
    answer = client.get(HERE)
    policy = answer.headers["Content-Security-Policy"]
    (style,) = re.findall(r"<style>(.*?)</style>", answer.text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r'(src|href|action)="(https?:)?//', answer.text)
    assert " style=" not in answer.text
    assert answer.headers["Cache-Control"] == "no-store"


def test_under_a_secret_path_every_link_stays_below_it_and_names_it_nowhere(
    ground: Ground, serve: Serve
) -> None:
    run = trained(ground)
    client = serve(auth=AuthSettings(url_secret="a-secret-path"))
    assert client.get(HERE).status_code == 404
    page = client.get(f"/a-secret-path{HERE}").text
    assert "a-secret-path" not in page
    (link,) = set(re.findall(r'src="([^"]+curves.png)"', page))
    assert link == f"../training/{PROJECT}/{run.job}/training/curves.png"
    answer = client.post(f"/a-secret-path{HERE}/rollback", headers=OURS)
    assert (answer.status_code, answer.headers["Location"]) == (303, f"../../training/{PROJECT}")
    refused = client.post(f"/a-secret-path{HERE}/rollback", headers=OURS)
    assert f'href="../../training/{PROJECT}"' in refused.text


def test_the_page_is_found_from_the_servers_first_answer(client: FlaskClient) -> None:
    assert client.get("/" + client.get("/").json["status_page"]).mimetype == "text/html"


# --- pictures ---


@pytest.mark.parametrize(
    "name",
    [
        "state.json", "gate.json", "training/log.jsonl", "gate/0009.png", "gate/../state.json",
        "..%2fstate.json", "training/../gate/0001.png", "gate/0003.png", "%2fetc/passwd", "gate",
    ],
)  # fmt: skip
def test_only_pictures_that_the_run_has_are_served(
    ground: Ground, client: FlaskClient, name: str
) -> None:
    run = trained(ground)
    folder = ground.runs.folder(run.job)
    Image.new("RGB", (4, 4)).save(folder / "gate" / "0003.png")  # there, but not named
    answer = client.get(f"{HERE}/{run.job}/{name}", follow_redirects=True)
    assert answer.status_code == 404
    assert answer.mimetype == "text/html"


@pytest.mark.parametrize(
    "named", ["../state.json", "/etc/passwd", "gate/../state.json", "gate/a.png", 7]
)
def test_a_verdict_cannot_name_other_files(ground: Ground, client: FlaskClient, named: Any) -> None:
    run = trained(ground)
    tell(ground.runs.folder(run.job), pictures=[named])
    assert "<img" in client.get(HERE).text, "the curves are there"
    assert run_facts(run, ground.runs.folder(run.job), "done").pictures == []
    answer = client.get(f"{HERE}/{run.job}/{named}", follow_redirects=True)
    assert answer.status_code == 404


def test_a_picture_of_another_project_or_of_no_run_is_not_found(
    ground: Ground, client: FlaskClient
) -> None:
    run = trained(ground)
    assert client.get(f"/training/4/{run.job}/training/curves.png").status_code == 404
    assert client.get(f"{HERE}/3-20200101T000000000000/gate/0001.png").status_code == 404
    assert client.get(f"{HERE}/../gate/0001.png").status_code == 404


def test_a_picture_that_has_not_changed_is_not_sent_again(
    ground: Ground, client: FlaskClient
) -> None:
    run = trained(ground)
    path = f"{HERE}/{run.job}/gate/0001.png"
    first = client.get(path)
    assert first.headers["X-Content-Type-Options"] == "nosniff"
    again = client.get(path, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


# --- buttons ---


def test_start_asks_for_a_run_and_comes_back(ground: Ground, client: FlaskClient) -> None:
    answer = client.post(f"{HERE}/start", data={"minutes": "2.5"}, headers=OURS)
    assert (answer.status_code, answer.headers["Location"]) == (303, f"../../training/{PROJECT}")
    (run,) = ground.runs.of(PROJECT)
    assert (run.minutes, run.why) == (2.5, "the status page")
    client.post(f"{HERE}/start", data={"minutes": ""}, headers=OURS)
    assert len(ground.runs.of(PROJECT)) == 1, "a second press joins"
    assert "Start training" not in client.get(HERE).text


@pytest.mark.parametrize("typed", ["cats", "-1", "0", "nan", "inf"])
def test_minutes_that_are_none_start_nothing(
    ground: Ground, client: FlaskClient, typed: str
) -> None:
    answer = client.post(f"{HERE}/start", data={"minutes": typed}, headers=OURS)
    assert answer.status_code == 400
    assert "above 0" in answer.text
    assert ground.runs.of() == []


def test_a_cancelled_run_can_be_gone_on_with(ground: Ground, client: FlaskClient) -> None:
    run = halfway(ground)
    answer = client.post(f"{HERE}/cancel", data={"job": run.job}, headers=OURS)
    assert answer.status_code == 303
    assert ground.runs.find(run.job).outcome == "cancelled"
    assert "It was cancelled." in client.get(HERE).text
    client.post(f"{HERE}/start", data={"resume": "1"}, headers=OURS)
    assert [r.job for r in ground.runs.unfinished(PROJECT)] == [run.job]


def test_only_the_projects_own_run_is_cancelled(ground: Ground, client: FlaskClient) -> None:
    run = halfway(ground)
    for path, job in (("/training/4", run.job), (HERE, "3-20200101T000000000000"), (HERE, "../x")):
        assert client.post(f"{path}/cancel", data={"job": job}, headers=OURS).status_code == 404
    assert not ground.runs.find(run.job).is_done


def test_promote_and_roll_back(ground: Ground, client: FlaskClient) -> None:
    run, own = trained(ground), ground.version(ground.base)
    assert f"Roll back to <code>{own}</code>" in client.get(HERE).text
    assert client.post(f"{HERE}/rollback", headers=OURS).status_code == 303
    assert ground.served is None
    page = client.get(HERE).text
    assert "UTC , rolled back: by hand" in text_of(page).partition("Newest run")[0]
    assert "Roll back to" not in page
    refused = client.post(f"{HERE}/rollback", headers=OURS)
    assert refused.status_code == 400
    assert "was never served another version" in refused.text
    client.post(f"{HERE}/promote", data={"version": run.version}, headers=OURS)
    assert ground.served == run.version
    client.post(f"{HERE}/promote", data={"version": own}, headers=OURS)
    assert ground.served == own
    assert "the server&#39;s own model" in client.get(HERE).text.replace("'", "&#39;")
    unknown = client.post(f"{HERE}/promote", data={"version": "0123456789ab"}, headers=OURS)
    assert unknown.status_code == 404
    events = [change.event for change in ground.versions.history(PROJECT)]
    shown = re.findall(
        r'<span class="badge [^"]*">(added|promoted|rolled back)</span>',
        client.get(HERE).text.partition('id="history"')[2],
    )
    assert shown == events[::-1]


def test_where_nothing_can_be_trained_the_page_says_what_to_do(
    ground: Ground, serve: Serve
) -> None:
    client = serve(training=TrainingSettings(python=ground.folder / "nowhere"))
    answer = client.post(f"{HERE}/start", headers=OURS)
    assert (answer.status_code, answer.mimetype) == (503, "text/html")
    assert "make setup-train" in answer.text
    assert answer.headers["Retry-After"]
    assert "http-equiv" not in answer.text


def test_what_cannot_be_read_is_told_as_a_page(ground: Ground, client: FlaskClient) -> None:
    trained(ground)
    current = ground.data_dir / "versions" / "projects" / str(PROJECT) / "current"
    current.unlink()
    current.mkdir()
    answer = client.get(HERE)
    assert (answer.status_code, answer.mimetype) == (503, "text/html")
    assert "cannot be read" in answer.text
    assert answer.headers["X-Request-ID"] in answer.text
    assert str(ground.data_dir) not in answer.text


# --- who may ---

FORMS = ("start", "cancel", "promote", "rollback")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="nothing says where it comes from"),
        pytest.param({"Origin": "http://evil.example"}, id="another origin"),
        pytest.param({"Origin": "null"}, id="a hidden origin"),
        pytest.param({"Origin": "http://localhost.evil.example"}, id="a similar origin"),
        pytest.param({"Origin": "http://localhost:8080"}, id="another port"),
        pytest.param({"Sec-Fetch-Site": "cross-site", **OURS}, id="cross-site"),
        pytest.param({"Sec-Fetch-Site": "same-site"}, id="same-site"),
        pytest.param({"Sec-Fetch-Site": "none"}, id="none"),
    ],
)
def test_forms_of_other_sites_do_nothing(
    ground: Ground, client: FlaskClient, form: str, headers: dict[str, str]
) -> None:
    run = trained(ground)
    going_on = halfway(ground)
    data = {"job": going_on.job, "version": ground.version(ground.base)}
    answer = client.post(f"{HERE}/{form}", data=data, headers=headers)
    assert (answer.status_code, answer.mimetype) == (403, "text/html")
    assert "own page" in answer.text
    assert ground.served == run.version
    assert [run.job for run in ground.runs.unfinished()] == [going_on.job]
    assert not ground.runs.is_cancelled(going_on.job)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Sec-Fetch-Site": "same-origin"}, id="as on loopback and over HTTPS"),
        pytest.param({"Origin": "http://localhost"}, id="as over HTTP"),
        pytest.param({"Origin": "https://localhost"}, id="as behind a proxy that speaks HTTPS"),
    ],
)
def test_forms_of_the_page_itself_pass(
    ground: Ground, client: FlaskClient, headers: dict[str, str]
) -> None:
    assert client.post(f"{HERE}/start", headers=headers).status_code == 303


def test_beyond_loopback_what_is_guarded_is_neither_offered_nor_done(
    ground: Ground, serve: Serve
) -> None:
    run = trained(ground)
    there = {"SERVER_NAME": "0.0.0.0"}
    client = serve()
    page = client.get(HERE, environ_overrides=there).text
    assert "BASIC_AUTH_USER" in page
    assert not re.search(r"/(rollback|promote|cancel)\"", page)
    assert "gate/0001.png" not in page
    assert f"{HERE}/start" in page, "which is not guarded, as /train is not"
    for form in FORMS[1:]:
        answer = client.post(
            f"{HERE}/{form}", data={"job": run.job, "version": run.version},
            headers={"Sec-Fetch-Site": "same-origin"}, environ_overrides=there,
        )  # fmt: skip
        assert answer.status_code == 403
    picture = f"{HERE}/{run.job}/gate/0001.png"
    assert client.get(picture, environ_overrides=there).status_code == 403
    curves = f"{HERE}/{run.job}/training/curves.png"
    assert client.get(curves, environ_overrides=there).status_code == 200


def test_under_another_sites_name_what_is_guarded_is_neither_offered_nor_done(
    ground: Ground, client: FlaskClient
) -> None:
    """A page of evil.example whose name leads to 127.0.0.1: a browser takes the two for one."""
    run = trained(ground)
    rebound = {"Host": "evil.example", "Sec-Fetch-Site": "same-origin"}
    page = client.get(HERE, headers=rebound).text
    assert "own name" in page
    assert not re.search(r"/(rollback|promote|cancel)\"", page)
    for form in FORMS[1:]:
        data = {"job": run.job, "version": ground.version(ground.base)}
        assert client.post(f"{HERE}/{form}", data=data, headers=rebound).status_code == 403
    assert ground.served == run.version


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/training"), ("GET", HERE), ("GET", f"{HERE}/3-x/gate/0001.png")]
    + [("POST", f"{HERE}/{form}") for form in FORMS],
)
def test_with_a_password_everything_asks_for_it(serve: Serve, method: str, path: str) -> None:
    client = serve(auth=AuthSettings(basic_auth_user="u", basic_auth_pass="p"))
    answer = client.open(path, method=method, headers=OURS)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic")
    assert client.open(path, method=method, headers=OURS, auth=("u", "p")).status_code != 401


# --- as it is written ---


def test_numbers_and_times_are_written_for_people() -> None:
    assert moment("2026-11-21T23:20:59.1+00:00") == "2026-11-21 23:20"
    assert moment(None) == moment("soon") == DASH
    assert [minutes(value) for value in (0.2, 12.4, 150, -1, float("nan"), "x")] == [
        "less than a minute", "12 min", "2.5 h", DASH, DASH, DASH,
    ]  # fmt: skip


def test_more_clicks_and_less_iou_are_a_loss() -> None:
    groups = dict(gate_table({**GATE, "clicks_to_85": {"incumbent": 2.0, "challenger": 3.0}}))
    name = "Clicks until an object has 85 % IoU"
    assert groups["Work"] == [Comparison(name, "2.00", "3.00", "+1.00", is_loss=True)]
    assert [row.is_loss for row in groups["Labels"]] == [False, True]
    assert gate_table({}) == []
