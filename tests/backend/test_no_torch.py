from __future__ import annotations

import json
from pathlib import Path

from tests.backend.conftest import body, keypoint
from tests.backend.test_plugin import run

HEAVY = ("torch", "torchvision", "timm", "cv2", "scipy", "skimage", "label_studio_sdk")

BLOCKED = f"""
import sys

class Refuse:
    '''Blocks the packages, however deep an import of them lies.'''
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ImportError(f"{{name}} must not be imported by a serving process")

sys.meta_path.insert(0, Refuse())
"""


def test_the_service_serves_with_torch_blocked(disc_bundle: Path) -> None:
    script = (
        BLOCKED
        + """
import json
from backend.app import create_app
from backend.settings import Settings

client = create_app(Settings.from_env()).test_client()
answer = client.post("/predict", json=json.loads(sys.stdin.read()))
assert answer.status_code == 200, answer.text
assert answer.json["results"][0]["result"][0]["type"] == "brushlabels"
"""
    )
    run(script, json.dumps(body(keypoint(50, 50))), MODEL=str(disc_bundle))


def test_the_service_leaves_torch_alone_where_it_is_installed(disc_bundle: Path) -> None:
    script = f"""
        import sys
        from backend.app import create_app
        from backend.settings import Settings

        client = create_app(Settings.from_env()).test_client()
        assert client.post("/setup", json={{}}).json["model_version"]
        loaded = [name for name in {HEAVY!r} if name in sys.modules]
        assert not loaded, loaded
    """
    run(script, MODEL=str(disc_bundle))


def test_the_wsgi_file_is_the_application(disc_bundle: Path) -> None:
    run("import _wsgi; assert _wsgi.app.test_client().get('/health').status_code == 200",
        MODEL=str(disc_bundle))  # fmt: skip


def test_an_unknown_setting_stops_the_server_with_a_sentence(disc_bundle: Path) -> None:
    run(
        """
        try:
            import _wsgi
        except ValueError as exc:
            assert "EDGESAM_IMAGE_HOSTS" in str(exc)
        else:
            raise SystemExit("started")
        """,
        EDGESAM_IMAGES_HOST="x",
    )
