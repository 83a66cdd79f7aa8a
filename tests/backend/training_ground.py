"""A base model, a challenger, and programs that do as they are told: where runs are tested."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

from backend.model import ModelSettings
from backend.run_stages import Programs, Trainer
from backend.run_state import Budget, RunState
from backend.runs import Runs
from backend.training import TrainingSettings
from backend.versions import Versions, VersionSettings
from edgesam_core.bundle import Bundle
from tests.backend.disc_bundle import write_disc_bundle

PROJECT = 3
STAND_IN = Path(__file__).with_name("stand_in_training.py")
BETTER = "Mean IoU 81.0 % instead of 70.2 % on 5 held-out tasks."


class Ground:
    """Everything that a run needs, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.base = write_disc_bundle(folder / "base")
        (self.base / "weights.safetensors").write_bytes(b"any")
        self.challenger = write_disc_bundle(folder / "challenger", radius_px=40.0)
        self.other = write_disc_bundle(folder / "other", radius_px=50.0)
        self.runs = Runs(self.data_dir)
        self.versions = Versions(VersionSettings(self.data_dir))
        self.model = ModelSettings(name=str(self.base), threads=1)
        self.python = folder / "python"
        """An interpreter that knows the training's modules only."""
        self.python.write_text(f'#!/bin/sh\nexec "{sys.executable}" {STAND_IN} {folder} "$@"\n')
        self.python.chmod(self.python.stat().st_mode | stat.S_IXUSR)
        self.settings = TrainingSettings(python=self.python, recipe=folder / "recipe.yaml")
        self.behave()

    def behave(self, **behaviour: Any) -> None:
        """Say what the programs do from now on."""
        told = {"challenger": str(self.challenger), "promote": True, "reason": BETTER, **behaviour}
        (self.folder / "behaviour.json").write_text(json.dumps(told))

    def hold(self, stage: str) -> None:
        """Let a stage go round until `release`."""
        (self.folder / "hold").touch()
        self.behave(holds=stage)

    def release(self) -> None:
        (self.folder / "hold").unlink()

    @property
    def beats(self) -> str:
        """Changes as long as a stage that is held goes round; begins with its process id."""
        path = self.folder / "beats"
        return path.read_text() if path.exists() else ""

    @property
    def calls(self) -> list[str]:
        """The modules that were run, in order."""
        return [call["module"].rpartition(".")[2] for call in self._calls()]

    @property
    def last_arguments(self) -> list[str]:
        arguments: list[str] = self._calls()[-1]["arguments"]
        return arguments

    @property
    def tunables(self) -> list[str]:
        """GLIBC_TUNABLES of each program that was run."""
        return [call["tunables"] for call in self._calls()]

    def _calls(self) -> list[dict[str, Any]]:
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def programs(self) -> Programs:
        installed = Programs.installed(self.settings)
        snapshot = (str(self.python), "-m", "backend.snapshot")
        return Programs(snapshot, installed.training, installed.gate)

    def trainer(self, **options: Any) -> Trainer:
        return Trainer(self.runs, self.versions, self.model, self.programs(), **options)

    def request(self, **options: Any) -> RunState:
        run, _ = self.runs.request(PROJECT, Budget(), "a test", **options)
        return run

    def version(self, bundle: Path) -> str:
        return Bundle.open(bundle).manifest.version

    @property
    def served(self) -> str | None:
        return self.versions.current(PROJECT)

    def environ(self, **more: str) -> dict[str, str]:
        """For processes of ours that are to work here."""
        return {
            "PATH": os.environ.get("PATH", ""),
            "OMP_NUM_THREADS": "1",
            "HOME": str(self.folder),
            "MODEL": str(self.base),
            "EDGESAM_DATA_DIR": str(self.data_dir),
            "EDGESAM_TRAIN_PYTHON": str(self.python),
            "EDGESAM_CACHE_DIR": str(self.folder / "cache"),
            "EDGESAM_THREADS": "1",
            **more,
        }

    def forget(self) -> None:
        """Take away what runs have left."""
        shutil.rmtree(self.data_dir, ignore_errors=True)
