"""`fetch edge_sam_3x`, then `make serve MODEL=edge_sam_3x`: a click on the official files."""

from __future__ import annotations

import base64
import io

import numpy as np
import requests
from PIL import Image

from edgesam_core import fetch as fetch_module
from edgesam_core.export.official import DECODER_NAME, ENCODER_NAME, export_official
from edgesam_core.rle import brush_rle_to_mask
from tests.core.hub import running_hub
from tests.core.networks import random_network

SIZE = 64
LABEL_CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="mask" toName="image"><Label value="Cat"/></BrushLabels>
<KeyPointLabels name="click" toName="image" smart="true"><Label value="Cat"/></KeyPointLabels>
</View>"""


def test_fetched_official_files_are_served_by_their_name(start_backend, tmp_path, monkeypatch):
    export_official(random_network(), tmp_path, input_size=SIZE)
    names = (ENCODER_NAME, DECODER_NAME)
    files = {f"weights/{name}": (tmp_path / name).read_bytes() for name in names}
    monkeypatch.setattr(fetch_module, "INPUT_SIZE", SIZE)
    monkeypatch.setattr(fetch_module, "_can_export", lambda: False)
    with running_hub(files) as hub:
        fetch_module.fetch(
            "edge_sam_3x", tmp_path / "models", accept_licence=True, endpoint=hub.url
        )
    backend = start_backend("edge_sam_3x", {"MODEL_DIR": str(tmp_path / "models")})

    picture = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(picture, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
    click = {
        "original_width": 80, "original_height": 60, "type": "keypointlabels", "id": "a",
        "from_name": "click", "to_name": "image", "is_positive": True,
        "value": {"x": 50, "y": 50, "width": 0.2, "keypointlabels": ["Cat"]},
    }  # fmt: skip
    body = {
        "tasks": [{"id": 1, "data": {"image": uri}}],
        "project": "1.1",
        "label_config": LABEL_CONFIG,
        "params": {"context": {"result": [click]}},
    }
    answer = requests.post(f"{backend.url}/predict", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    (region,) = answer.json()["results"][0]["result"]
    assert brush_rle_to_mask(region["value"]["rle"], (60, 80)).any()
    assert requests.get(backend.url, timeout=10).json()["model"] == "edge_sam_3x"
