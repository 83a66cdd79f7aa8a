"""Everything that Label Studio itself asks of a backend, from attaching it to a concurrent click.

No browser: the labelling page asks through the same API, see test_labelling_page.py. The masks are
discs of a known radius, see disc_bundle.py.
"""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import requests

from edgesam_core.bundle import Bundle
from edgesam_core.rle import brush_rle_to_mask
from tests import parts, servers
from tests.backend.conftest import BRUSH_CONFIG, keypoint, picture_bytes, picture_uri
from tests.system.api import LabelStudioApi
from tests.system.conftest import jpeg, photo
from tests.system.label_studio_under_prefix import running_under_prefix

pytestmark = pytest.mark.slow

NO_TOKEN = (
    "Label Studio asks for a token. Create one in Label Studio under Account & Settings > "
    "Personal Access Token and start the backend with LABEL_STUDIO_API_KEY=<token>."
)


def predict_lines(backend: servers.RunningBackend, project_id: int) -> list[str]:
    """What our server logged about the predictions that a project asked for."""
    lines = backend.log.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if " predict " in line and f" project={project_id} " in line]


def only_region(answer: dict[str, Any]) -> dict[str, Any]:
    """The one region of an interactive answer."""
    assert "errors" not in answer, answer
    (region,) = answer["data"]["result"]
    return dict(region)


def mask_of(region: dict[str, Any]) -> Any:
    return brush_rle_to_mask(
        region["value"]["rle"], (region["original_height"], region["original_width"])
    )


def test_attach_open_retrieve_train_and_detach(api, backend, disc_bundle):
    version = Bundle.open(disc_bundle).manifest.version
    project = api.create_project("calls of Label Studio", BRUSH_CONFIG)
    tasks = api.import_tasks(project, *[{"image": picture_uri(grey=g)} for g in (40, 90, 140)])

    attached = api.attach(project, backend.url)
    assert attached.status_code == 201
    path = f"/api/ml/{attached.json()['id']}"
    shown = api.call("GET", path)
    assert (shown["state"], shown["model_version"]) == ("CO", version)
    assert api.call("GET", f"{path}/versions")["versions"] == [version]
    hooks = api.call("GET", f"/api/webhooks/?project={project}")
    assert [hook["url"] for hook in hooks] == [f"{backend.url}/webhook"]

    # Opening a task asks once: the empty prediction is stored.
    for _ in range(2):
        (prediction,) = api.call("GET", f"/api/tasks/{tasks[0]}")["predictions"]
        assert (prediction["result"], prediction["model_version"]) == ([], version)
    assert len(predict_lines(backend, project)) == 1

    # "Retrieve predictions" asks once for all tasks that have none.
    action = f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}"
    api.call("POST", action, json={"selectedItems": {"all": True, "excluded": []}})
    assert len(predict_lines(backend, project)) == 2
    for task in tasks:
        (prediction,) = api.call("GET", f"/api/tasks/{task}")["predictions"]
        assert prediction["result"] == []

    api.call("POST", f"{path}/train", json={})
    assert "brings no weights to start from" in backend.log.read_text(encoding="utf-8")
    (shown,) = api.call("GET", f"/api/ml?project={project}")  # asks for the health again
    assert shown["state"] == "CO"
    assert api.ask("DELETE", path).status_code == 204


def test_images_of_every_origin_are_fetched(api, backend, label_studio):
    project = api.create_project("origins of images", BRUSH_CONFIG)
    path = api.attach(project, backend.url).json()["id"]
    picture = picture_bytes(320, 200)
    folder = label_studio.data / "files" / "here"  # the root of local files, see the script
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "picture.png").write_bytes(picture)
    api.call(
        "POST",
        "/api/storages/localfiles",
        json={"project": project, "path": str(folder), "use_blob_urls": True},
    )
    at_label_studio = f"{label_studio.url}/data/local-files/?d=here/picture.png"
    found = api.import_tasks(
        project,
        {"image": "/data/local-files/?d=here/picture.png"},
        {"image": at_label_studio},
        {"image": picture_uri(320, 200)},
    )
    found.append(api.upload(project, "picture.png", picture))
    for task in found:
        region = only_region(api.click(path, task, sized(keypoint(25, 50), 320, 200)))
        assert mask_of(region)[100, 80]

    # A host on a private address that nobody named is not asked; Label Studio itself was.
    (elsewhere,) = api.import_tasks(project, {"image": f"{backend.url}/picture.png"})
    assert api.click(path, elsewhere, keypoint(25, 50))["errors"]
    assert "EDGESAM_IMAGE_HOSTS" in backend.log.read_text(encoding="utf-8").splitlines()[-2]


def test_secret_path_and_credentials_guard_a_server_without_a_token(
    api, label_studio, disc_bundle, start_backend
):
    secret, password = "a-secret-in-the-path", "no-one-knows-it"
    guarded = start_backend(
        disc_bundle,
        {
            "LABEL_STUDIO_URL": label_studio.url,
            "EDGESAM_URL_SECRET": secret,
            "BASIC_AUTH_USER": "label-studio",
            "BASIC_AUTH_PASS": password,
        },
    )
    credentials = {
        "auth_method": "BASIC_AUTH",
        "basic_auth_user": "label-studio",
        "basic_auth_pass": password,
    }
    project = api.create_project("guarded", BRUSH_CONFIG)
    task = api.upload(project, "picture.png", picture_bytes())

    without_secret = guarded.url.removesuffix(f"/{secret}")
    assert api.attach(project, without_secret, **credentials).status_code == 400
    assert api.attach(project, guarded.url).status_code == 400
    attached = api.attach(project, guarded.url, **credentials)
    assert attached.status_code == 201

    # Ordinary webhooks carry no credentials; the secret path admits them.
    api.call("PATCH", f"/api/projects/{project}", json={"description": "changed"})
    assert "backend.app" in (hook := last_line(guarded, " webhook ")), hook
    assert " webhook 200 " in hook
    api.call("POST", f"/api/ml/{attached.json()['id']}/train", json={})
    assert " webhook 503 " in last_line(guarded, " webhook ")

    # Uploads need a token. The page sees nothing, so the sentence stands in answer and log.
    told = api.click(attached.json()["id"], task, keypoint(50, 50))
    assert "502" in told["errors"][0]
    assert NO_TOKEN in guarded.log.read_text(encoding="utf-8")
    body = {
        "tasks": [api.call("GET", f"/api/tasks/{task}?resolve_uri=false")],
        "label_config": BRUSH_CONFIG,
        "params": {"context": {"result": [keypoint(50, 50)]}},
    }
    asked = requests.post(
        f"{guarded.url}/predict", json=body, auth=("label-studio", password), timeout=60
    )
    assert asked.status_code == 502
    assert asked.json()["error"].startswith(NO_TOKEN)
    assert asked.json()["request_id"] in guarded.log.read_text(encoding="utf-8")
    for word in (secret, password):
        assert word not in guarded.log.read_text(encoding="utf-8")


def test_two_annotators_on_two_images_never_see_each_others_mask(api, backend):
    project = api.create_project("two annotators", BRUSH_CONFIG)
    path = api.attach(project, backend.url).json()["id"]
    # Alike but for their grey, with which the disc grows.
    tasks = [
        api.upload(project, f"{grey}.png", picture_bytes(640, 480, grey=grey)) for grey in (30, 230)
    ]
    clicks = [keypoint(x, 50) for x in range(20, 80, 10) for _ in tasks]

    def click(number: int) -> dict[str, Any]:
        return only_region(api.click(path, tasks[number % 2], clicks[number]))

    with ThreadPoolExecutor(4) as annotators:  # the first clicks find neither image encoded
        at_once = list(annotators.map(click, range(len(clicks))))
    radii = []
    for number, region in enumerate(at_once):
        mask = mask_of(region)
        y, x = np.nonzero(mask)
        middle = clicks[number]["value"]["x"] / 100 * 640, 240
        assert (x.mean(), y.mean()) == pytest.approx(middle, abs=4)
        radii.append((mask.sum() / np.pi) ** 0.5)
    assert max(radii[::2]) < min(radii[1::2])
    one_by_one = [click(number) for number in range(len(clicks))]
    hashes = [[r["meta"]["edgesam"]["shape_hash"] for r in rs] for rs in (at_once, one_by_one)]
    assert hashes[0] == hashes[1]
    assert len({region["id"] for region in at_once + one_by_one}) == 2 * len(clicks)


def test_under_a_path_prefix(label_studio, disc_bundle, start_backend, tmp_path):
    """Label Studio with LABEL_STUDIO_HOST=http://host/prefix, on a copy of the database."""
    data = shutil.copytree(label_studio.data, tmp_path / "label_studio")
    python = parts.find_label_studio_python()
    with running_under_prefix(python, data, "/annotation/tool") as url:
        api = LabelStudioApi(url, label_studio.personal_access_token)
        below = start_backend(
            disc_bundle,
            {"LABEL_STUDIO_URL": url, "LABEL_STUDIO_API_KEY": label_studio.personal_access_token},
        )
        project = api.create_project("under a prefix", BRUSH_CONFIG)
        attached = api.attach(project, below.url)
        assert attached.status_code == 201
        image = photo("coffee.png")
        uploaded = api.upload(project, "coffee.jpg", jpeg(image))
        stored = api.call("GET", f"/api/tasks/{uploaded}?resolve_uri=false")["data"]["image"]
        assert stored.startswith("/annotation/tool/data/upload/")
        bare = stored.removeprefix("/annotation/tool")  # as older imports have it
        for task in (uploaded, *api.import_tasks(project, {"image": bare})):
            click = sized(keypoint(50, 50), *image.size)
            region = only_region(api.click(attached.json()["id"], task, click))
            assert mask_of(region)[200, 300]
        assert "calls itself" not in below.log.read_text(encoding="utf-8")
        api.close()


def sized(region: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    return {**region, "original_width": width, "original_height": height}


def last_line(backend: servers.RunningBackend, words: str) -> str:
    """The newest line of our server's log that has these words."""
    lines = backend.log.read_text(encoding="utf-8").splitlines()
    return next(line for line in reversed(lines) if words in line)
