"""What holds for the repository as a whole: pins, imports, licence, no trace of one machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests import parts

REPOSITORY = parts.REPOSITORY
SERVING = ["requirements.txt", "requirements-no-deps.txt"]
TRAINING = ["requirements-train.txt"]
DEVELOPMENT = [*SERVING, *TRAINING, "requirements-dev.txt"]

# The first releases without the holes that were known when they were set; the pins are newer.
MINIMUM = {
    "flask": "3.1.3",
    "werkzeug": "3.1.9",
    "jinja2": "3.1.6",
    "pillow": "13.0.0",
    "requests": "2.34.2",
    "gunicorn": "27.0.1",
}

# Modules that lie in ../shared, beside the reference recordings.
OF_SHARED = {"check_example", "drive_ui", "fixture_inputs", "make_state_dict"}

# Installed although their own requirements do not fit: the head of each file says why.
WITHOUT_THEIR_REQUIREMENTS = {"label-studio-ml", "label-studio-sdk", "openvino"}


@cache
def repository_files() -> list[Path]:
    """Every file that is, or is about to be, part of the repository."""
    told = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    if told.returncode:
        pytest.skip("not a git checkout")
    paths = [REPOSITORY / name for name in told.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def requirements_in(*names: str) -> Iterator[Requirement]:
    """The requirements of these files; comments and blank lines left out."""
    for name in names:
        for line in (REPOSITORY / name).read_text().splitlines():
            if wanted := line.split("#")[0].strip():
                yield Requirement(wanted)


def pins_in(*names: str) -> dict[str, str]:
    """Canonical name -> version, of these files together."""
    return {
        canonicalize_name(wanted.name): str(wanted.specifier).removeprefix("==")
        for wanted in requirements_in(*names)
    }


def imported_by(*folders: str, leave_out: tuple[str, ...] = ()) -> dict[str, str]:
    """Top-level name of every package from outside -> a file that imports it, lazily or not."""
    ours = {path.name for path in REPOSITORY.iterdir() if path.is_dir()} | {"_wsgi"} | OF_SHARED
    found: dict[str, str] = {}
    for path in repository_files():
        name = path.relative_to(REPOSITORY).as_posix()
        if path.suffix != ".py" or not name.startswith(folders) or name.startswith(leave_out):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            for module in modules:
                top = module.split(".")[0]
                if top not in sys.stdlib_module_names and top not in ours:
                    found[top] = name
    return found


# --- pins ---


@pytest.mark.parametrize("name", DEVELOPMENT)
def test_every_requirement_is_pinned(name):
    loose = [
        str(wanted)
        for wanted in requirements_in(name)
        if not re.fullmatch(r"==[\w.]+", str(wanted.specifier))
    ]
    assert not loose


def test_a_package_has_the_same_version_wherever_it_is_named():
    everywhere = pins_in(*DEVELOPMENT)
    for name in DEVELOPMENT:
        assert pins_in(name).items() <= everywhere.items(), name


@pytest.mark.parametrize(("package", "minimum"), MINIMUM.items())
def test_no_release_with_known_holes_is_pinned_or_installed(package, minimum):
    assert Version(pins_in(*SERVING)[package]) >= Version(minimum)
    assert Version(metadata.version(package)) >= Version(minimum)


@pytest.mark.parametrize(
    "names", [SERVING, TRAINING, DEVELOPMENT], ids=["serving", "training", "development"]
)
def test_the_pins_fit_each_other_and_nothing_is_missing(names):
    pins = pins_in(*names)
    wrong = []
    for name, pin in pins.items():
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if Version(distribution.version).public != pin or name in WITHOUT_THEIR_REQUIREMENTS:
            continue
        for line in distribution.requires or []:
            wanted = Requirement(line)
            if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
                continue
            have = pins.get(canonicalize_name(wanted.name))
            # What torch's own build brings (CUDA) is not pinned.
            if name == "torch" and have is None and wanted.name.startswith(("nvidia", "triton")):
                continue
            if name == "torch" and wanted.name.startswith("cuda"):
                continue
            # pip brings itself.
            if wanted.name == "pip":
                continue
            if have is None or not wanted.specifier.contains(have, prereleases=True):
                wrong.append(f"{name} {pin} wants {wanted}, pinned is {have}")
    assert not wrong


def test_the_serving_requirements_hold_nothing_of_training():
    heavy = {
        "torch", "torchvision", "timm", "opencv-python-headless", "scipy", "coremltools",
        "lightning-fabric", "matplotlib",
    }  # fmt: skip
    assert not heavy & pins_in(*SERVING).keys()


@pytest.mark.parametrize(
    ("names", "folders", "leave_out"),
    [
        pytest.param(
            SERVING,
            ("edgesam_core/", "backend/", "_wsgi.py", "gunicorn.conf.py"),
            ("edgesam_core/nn/", "edgesam_core/export/"),
            id="serving",
        ),
        pytest.param(
            TRAINING,
            ("edgesam_core/nn/", "edgesam_core/export/", "distillation/"),
            (),
            id="training",
        ),
        pytest.param(DEVELOPMENT, ("tests/", "bench/", "docs/"), (), id="development"),
    ],
)
def test_what_is_imported_is_pinned_where_it_is_needed(names, folders, leave_out):
    pins = pins_in(*names)
    distributions = metadata.packages_distributions()
    missing = {
        top: where
        for top, where in imported_by(*folders, leave_out=leave_out).items()
        if not pins.keys() & {canonicalize_name(name) for name in distributions.get(top, [])}
    }
    assert not missing


def test_pre_commit_and_make_check_run_the_same_versions():
    pins = pins_in("requirements-dev.txt")
    packages = {"ruff-pre-commit": "ruff"}
    for hook in yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]:
        name = hook["repo"].rsplit("/", 1)[-1]
        assert hook["rev"] == "v" + pins[packages.get(name, name)]


# --- imports ---


def test_imports_go_one_way():
    program = parts.require(
        Path(sys.executable).with_name("lint-imports"), "import-linter is not installed"
    )
    told = subprocess.run(
        [program, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert told.returncode == 0, told.stdout + told.stderr


BLOCKED = (
    "torch", "torchvision", "timm", "safetensors", "cv2", "scipy", "skimage", "onnx",
    "lightning_fabric", "matplotlib",
)  # fmt: skip

IMPORT_ALL_THAT_SERVES = f"""
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked: serving must do without it")

sys.meta_path.insert(0, Blocked())
for root in ("edgesam_core", "backend"):
    package = importlib.import_module(root)
    for module in pkgutil.iter_modules(package.__path__, root + "."):
        if module.name not in ("edgesam_core.nn", "edgesam_core.export"):
            importlib.import_module(module.name)
assert not set(sys.modules) & set({BLOCKED!r})
"""


def test_everything_that_serves_imports_with_torch_blocked():
    told = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL_THAT_SERVES],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert told.returncode == 0, told.stderr


def test_no_module_is_named_like_one_of_the_standard_library():
    named = {path.stem for path in repository_files() if path.suffix == ".py"}
    assert not {name for name in named if name.strip("_") == name} & sys.stdlib_module_names


# --- what lies in the repository ---


def test_the_licence_is_apache_2():
    text = (REPOSITORY / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"


def test_no_path_of_one_machine_is_in_the_repository():
    folders = "|".join(["work", "farm", "root", "Users", r"tmp/\w+_jobs"])
    path_of_a_machine = re.compile(rf"(?<![\w.)}}/-])/({folders})/")
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:100]}"
        for path in repository_files()
        if b"\0" not in path.read_bytes()[:4096]
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if path_of_a_machine.search(line)
    ]
    assert not found


def test_no_large_file_beside_the_default_model():
    large = [
        path.relative_to(REPOSITORY).as_posix()
        for path in repository_files()
        if path.stat().st_size > 2_000_000
    ]
    assert not [name for name in large if not name.startswith("models/default/")]


def test_make_lists_every_target_that_contributors_are_told_of():
    told = subprocess.run(["make", "--no-print-directory"], cwd=REPOSITORY, capture_output=True,
                          text=True, check=True)  # fmt: skip
    listed = {line.split()[0] for line in told.stdout.splitlines()}
    text = (REPOSITORY / "CONTRIBUTING.md").read_text() + (REPOSITORY / ".ci" / "run").read_text()
    assert set(re.findall(r"\bmake ([a-z][a-z-]+)", text)) <= listed


def test_the_changelog_has_an_entry_for_this_version():
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    text = (REPOSITORY / "CHANGELOG.md").read_text()
    assert f"## [{version}]" in text or "## [Unreleased]" in text
