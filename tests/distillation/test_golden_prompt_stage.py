"""Five steps whose losses are known: a change in what is learned does not pass unseen.

Made again, after a change that was meant, by

    python -m tests.distillation.test_golden_prompt_stage
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch

from distillation.batches import Batch
from distillation.configs import Phase, PromptStageConfig
from distillation.engine import StepResult, fit
from distillation.prompt_stage import PromptStage
from tests.distillation.conftest import render_data

GOLDEN = Path(__file__).with_name("golden_prompt_stage.json")
TOLERANCE = 1e-3

PHASE = Phase(
    steps=5, size=64, batch=3, prompts=3, rounds=3, box_share=0.5, procedural=0.3, pasted=0.3,
    min_area=0.01,
)  # fmt: skip
CONFIG = PromptStageConfig(
    phases=(PHASE,), set_weights={"scenes": 1.0}, warmup_steps=5, held_back=1, seed=1
)


def trajectory(data: Path, run: Path) -> list[dict[str, float]]:
    """Loss and metrics of every step."""

    class Recorded(PromptStage):
        def forward(self, batch: Batch) -> StepResult:
            result = super().forward(batch)
            values = {"loss": result.loss, **result.metrics}
            steps.append({name: round(value.item(), 5) for name, value in values.items()})
            return result

    steps: list[dict[str, float]] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fit(Recorded(CONFIG, data), CONFIG, run)
    finally:
        torch.set_num_threads(threads)
    return steps


@pytest.mark.slow
def test_five_steps_go_as_they_went(data_folder: Path, tmp_path: Path) -> None:
    expected = json.loads(GOLDEN.read_text())
    found = trajectory(data_folder, tmp_path)
    assert len(found) == len(expected) == 5
    assert {name for step in found for name in step} >= {"box_iou", "click_iou"}
    for step, golden in zip(found, expected, strict=True):
        assert step == pytest.approx(golden, abs=TOLERANCE)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        render_data(data)
        steps = trajectory(data, Path(folder) / "run")
    lines = ",\n".join(json.dumps(step) for step in steps)
    GOLDEN.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
