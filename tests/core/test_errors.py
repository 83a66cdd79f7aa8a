from __future__ import annotations

from edgesam_core import errors
from edgesam_core.errors import EdgeSamError

ANSWERS = {
    "internal_error": 500,
    "request_error": 400,
    "prompt_error": 422,
    "label_config_error": 422,
    "image_error": 422,
    "image_too_large": 413,
    "superseded": 409,
    "no_such_run": 404,
    "no_such_version": 404,
    "guarded": 403,
    "host_refused": 403,
    "upstream_error": 502,
    "upstream_timeout": 504,
    "unavailable": 503,
    "training_unavailable": 503,
    "bundle_error": 500,
    "versions_error": 503,
    "run_error": 500,
}
"""What programs may rely on: a class that is renamed must not rename its code unnoticed."""


def test_every_error_has_its_code_and_its_status() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert {kind.code: kind.status for kind in kinds if issubclass(kind, EdgeSamError)} == ANSWERS


def test_the_sentence_of_the_class_is_said_unless_there_is_a_better_one() -> None:
    assert str(errors.ImageTooLarge()) == errors.ImageTooLarge.default_sentence
    better = errors.ImageTooLarge("The image has 9 pixels too many.", detail="/secret/path")
    assert (str(better), better.sentence) == ("The image has 9 pixels too many.",) * 2
    assert better.detail == "/secret/path"
