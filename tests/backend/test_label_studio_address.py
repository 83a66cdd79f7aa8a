from __future__ import annotations

import base64

import pytest

from backend.label_studio_address import LabelStudioAddress


@pytest.mark.parametrize(
    ("url", "found", "resolved"),
    [
        pytest.param(
            "http://ls:8080",
            "/data/upload/1/a b.jpg",
            "http://ls:8080/data/upload/1/a b.jpg",
            id="upload",
        ),
        pytest.param(
            "http://ls:8080",
            "data/upload/1/a.jpg",
            "http://ls:8080/data/upload/1/a.jpg",
            id="upload without its first slash",
        ),
        pytest.param(
            "http://ls/label-studio",
            "/data/local-files/?d=a/b.jpg",
            "http://ls/label-studio/data/local-files/?d=a/b.jpg",
            id="prefix is added",
        ),
        pytest.param(
            "http://ls/label-studio",
            "/label-studio/data/upload/1/a.jpg",
            "http://ls/label-studio/data/upload/1/a.jpg",
            id="prefix is there already",
        ),
        pytest.param(
            "http://ls/label-studio",
            "http://ls/data/upload/1/a.jpg",
            "http://ls/label-studio/data/upload/1/a.jpg",
            id="prefix is added to a whole address",
        ),
        pytest.param(
            "http://ls/label-studio",
            "http://ls/pictures/a.jpg",
            "http://ls/pictures/a.jpg",
            id="another application on the same host",
        ),
        pytest.param(
            "http://ls/label-studio",
            "https://other/data/upload/1/a.jpg",
            "https://other/data/upload/1/a.jpg",
            id="another host",
        ),
    ],
)
def test_paths_become_addresses(url: str, found: str, resolved: str) -> None:
    assert LabelStudioAddress(url).resolve(found) == resolved


@pytest.mark.parametrize(
    ("url", "is_own"),
    [
        ("http://ls:8080/label-studio/data/upload/1.jpg", True),
        ("http://LS:8080/label-studio/x", True),
        ("http://ls:8080/label-studio", True),
        ("http://ls:8080/label-studio-2/x", False),
        ("http://ls:8080/other", False),
        ("http://ls:8080/label-studio/../other", False),
        ("http://ls:8080/label-studio/%2e%2e/other", False),
        ("https://ls:8080/label-studio/x", False),
        ("http://ls:8081/label-studio/x", False),
        ("http://ls/label-studio/x", False),
        ("http://ls:8080.evil.com/label-studio/x", False),
        ("http://ls:8080@evil.com/label-studio/x", False),
        ("http://evil.com\\@ls:8080/label-studio/x", False),
        ("http://evil.com/http://ls:8080/label-studio/x", False),
        ("/label-studio/x", False),
    ],
)
def test_only_the_full_origin_and_prefix_are_label_studios_own(url: str, is_own: bool) -> None:
    there = LabelStudioAddress("http://ls:8080/label-studio")
    assert there.owns(url) is is_own


def test_default_port_is_part_of_the_origin() -> None:
    there = LabelStudioAddress("https://ls.example.com")
    assert there.owns("https://ls.example.com:443/data/upload/1.jpg")
    assert not there.owns("http://ls.example.com/data/upload/1.jpg")


def test_cloud_file_is_asked_for_by_task_in_base64() -> None:
    there = LabelStudioAddress("http://ls/label-studio")
    url = there.presign(12, "s3://bucket/ä b?.jpg")
    head, _, encoded = url.partition("?fileuri=")
    assert head == "http://ls/label-studio/tasks/12/presign/"
    encoded = encoded.replace("%3D", "=")
    assert base64.urlsafe_b64decode(encoded).decode() == "s3://bucket/ä b?.jpg"
