from __future__ import annotations

from pathlib import Path

import pytest

from backend.settings import VARIABLES, Settings, SettingsError, environment_page
from tests.parts import REPOSITORY


def test_an_empty_environment_serves_the_default_model_beside_label_studio() -> None:
    settings = Settings.from_env({})
    assert settings.label_studio.url == "http://localhost:8080"
    assert settings.model.name == "default"
    assert settings.model.models_dir == REPOSITORY / "models"
    assert settings.store.cache_dir == Path("~/.cache/edgesam-label-studio").expanduser()


def test_every_variable_reaches_its_field() -> None:
    values = {
        "LABEL_STUDIO_URL": "https://ls.example/sub/", "LABEL_STUDIO_API_KEY": "key",
        "MODEL": "edge_sam_3x", "MODEL_DIR": "/models", "LOG_LEVEL": "debug",
        "BASIC_AUTH_USER": "u", "BASIC_AUTH_PASS": "p", "EDGESAM_URL_SECRET": "12345678",
        "HOST": "edgesam.local",
        "EDGESAM_IMAGE_HOSTS": "minio:9000, files", "EDGESAM_CACHE_DIR": "/cache",
        "EDGESAM_IMAGE_CACHE_BYTES": "1", "EDGESAM_MAX_IMAGE_BYTES": "2",
        "EDGESAM_MAX_IMAGE_PIXELS": "3", "EDGESAM_FETCH_TIMEOUT_S": "4.5",
        "EDGESAM_EMBEDDING_CACHE_BYTES": "5", "EDGESAM_ENCODE_WAIT_S": "6",
        "EDGESAM_REFINEMENT_CACHE_BYTES": "7", "EDGESAM_OUTPUTS": "all",
        "EDGESAM_GRANULARITY_PRIOR": "mean", "EDGESAM_SECOND_LOOK": "on",
        "EDGESAM_POLYGON_TOLERANCE_PX": "0.5", "EDGESAM_POLYGON_MAX_VERTICES": "9",
        "EDGESAM_MIN_REGION_PX": "10", "EDGESAM_MAX_RLE_BYTES": "100001",
        "EDGESAM_THREADS": "11", "EDGESAM_LOAD_WAIT_S": "12",
        "EDGESAM_MAX_BODY_BYTES": "13", "EDGESAM_STORE_BYTES": "14",
        "EDGESAM_STORE_URL": "redis://store/1",
        "EDGESAM_RUNTIME": "openvino",
        "REDIS_URL": "redis://jobs/0", "EDGESAM_WORKER_WAIT_S": "15",
        "EDGESAM_PREFETCH_TASKS": "16", "THREADS": "17", "EDGESAM_DATA_DIR": "/data",
        "EDGESAM_TRAIN_PYTHON": "/train/python", "EDGESAM_TRAIN_RECIPE": "/recipe.yaml",
        "EDGESAM_TRAIN_MINUTES": "18.5", "EDGESAM_TRAIN_EVERY": "19",
    }  # fmt: skip
    assert set(values) == {variable.name for variable in VARIABLES}
    settings, default = Settings.from_env(values), Settings()
    for variable in VARIABLES:
        ours = getattr(getattr(settings, variable.section), variable.field)
        assert ours != getattr(getattr(default, variable.section), variable.field), variable.name
    assert settings.images.allowed_hosts == ("minio:9000", "files")


def test_an_empty_value_is_no_value() -> None:
    given = {"BASIC_AUTH_USER": "", "LABEL_STUDIO_URL": " ", "EDGESAM_NO_SUCH_THING": ""}
    assert Settings.from_env(given) == Settings.from_env({})


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        pytest.param({"EDGESAM_IMAGE_HOST": "x"}, "EDGESAM_IMAGE_HOSTS", id="nearest name"),
        pytest.param({"EDGESAM_CACHE_BYTE": "1"}, "EDGESAM_", id="another one"),
        pytest.param({"EDGESAM_THREADS": "two"}, "EDGESAM_THREADS", id="no number"),
        pytest.param({"EDGESAM_MIN_REGION_PX": "1.5"}, "whole number", id="no whole number"),
        pytest.param({"LOG_LEVEL": "loud"}, "LOG_LEVEL", id="no level"),
        pytest.param({"EDGESAM_ENCODE_WAIT_S": "1000"}, "EDGESAM_ENCODE_WAIT_S", id="endless"),
        pytest.param({"LABEL_STUDIO_URL": "ftp://x"}, "LABEL_STUDIO_URL", id="no http"),
        pytest.param({"EDGESAM_STORE_URL": "store:6379"}, "EDGESAM_STORE_URL", id="no Redis"),
        pytest.param({"REDIS_URL": "jobs:6379"}, "REDIS_URL", id="no Redis for jobs"),
        pytest.param({"EDGESAM_WORKER_WAIT_S": "0"}, "EDGESAM_WORKER_WAIT_S", id="no wait"),
        pytest.param({"EDGESAM_PREFETCH_TASKS": "-1"}, "EDGESAM_PREFETCH_TASKS", id="less than 0"),
        pytest.param({"EDGESAM_TRAIN_MINUTES": "0"}, "EDGESAM_TRAIN_MINUTES", id="no minutes"),
        pytest.param({"EDGESAM_TRAIN_EVERY": "-1"}, "EDGESAM_TRAIN_EVERY", id="fewer than none"),
        pytest.param({"EDGESAM_OUTPUTS": "both"}, "EDGESAM_OUTPUTS", id="no choice"),
        pytest.param(
            {"EDGESAM_GRANULARITY_PRIOR": "on"}, "EDGESAM_GRANULARITY_PRIOR", id="no merge rule"
        ),
    ],
)
def test_a_wrong_value_is_told_by_its_name(environ: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Settings.from_env(environ)


def test_a_contradiction_names_both() -> None:
    with pytest.raises(SettingsError, match=r"BASIC_AUTH_USER.*BASIC_AUTH_PASS"):
        Settings.from_env({"BASIC_AUTH_USER": "u"})


def test_secrets_are_not_shown() -> None:
    secrets = {
        "LABEL_STUDIO_API_KEY": "t0ken-value",
        "BASIC_AUTH_USER": "u",
        "BASIC_AUTH_PASS": "passw0rd",
        "EDGESAM_URL_SECRET": "s3cret-path",
    }
    shown = repr(Settings.from_env(secrets))
    for secret in ("t0ken-value", "passw0rd", "s3cret-path"):
        assert secret not in shown


def test_the_page_of_variables_is_current() -> None:
    """Remake it with: python -m backend.settings > docs/environment.md"""
    page = (REPOSITORY / "docs" / "environment.md").read_text(encoding="utf-8")
    assert page == environment_page()
