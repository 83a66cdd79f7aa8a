"""What can go wrong, as sentences for the person who has to mend it.

Every error that reaches a person is one of these. The sentence says what is wrong, then what to do;
it never holds a path, a token or a class name. Details for the log go into ``detail``. HTTP answers
take ``status`` and ``code`` from here, so the tree is also the table of what a caller can receive.
"""

from __future__ import annotations

import re


class EdgeSamError(Exception):
    """Anything that we can explain.

    Attributes:
        status: HTTP status of an answer that carries this error.
        code: Word for programs: the class's name, ``prompt_error`` for PromptError.
        sentence: What is wrong and what to do about it.
        detail: More for the log (paths, upstream status); never sent to a caller.
    """

    status = 500
    code = "internal_error"
    default_sentence = "Something went wrong here. The log has the details under the request id."

    def __init_subclass__(cls) -> None:
        """Name the code after the class."""
        cls.code = re.sub(r"\B([A-Z])", r"_\1", cls.__name__).lower()

    def __init__(self, sentence: str | None = None, *, detail: str = "") -> None:
        """Take the sentence of the class unless a better one is given."""
        self.sentence = sentence or self.default_sentence
        self.detail = detail
        super().__init__(self.sentence)


class RequestError(EdgeSamError):
    """The caller can mend it."""

    status = 400
    default_sentence = "The request could not be understood. Compare it with Label Studio's."


class PromptError(RequestError):
    """A click or box that cannot be answered: outside the image, unknown type, empty mask."""

    status = 422
    default_sentence = "The prompt could not be used. Click or draw a box inside the image."


class LabelConfigError(RequestError):
    """The labelling config has no image tag, or no control that can hold a mask."""

    status = 422
    default_sentence = (
        "The labelling config has no control that can hold a mask. "
        "Add BrushLabels (or PolygonLabels, BitmaskLabels, RectangleLabels) for the image."
    )


class ImageError(RequestError):
    """The image could not be read."""

    status = 422
    default_sentence = "The image could not be read. Save it as PNG or JPEG and upload it again."


class ImageTooLarge(ImageError):
    """The image is over the byte or pixel limit."""

    status = 413
    default_sentence = "The image is too large. Make it smaller or raise the limit."


class Superseded(RequestError):
    """A newer click asks for the same and more; nobody looks at this one's answer."""

    status = 409
    default_sentence = (
        "A newer click on the same object is being answered in place of this one. Nothing to do."
    )


class NoSuchRun(RequestError):
    """A training run that there is not, or no longer."""

    status = 404
    default_sentence = "There is no such training run here. Compare the job with /train's answer."


class NoSuchVersion(RequestError):
    """A version of the model that there is not."""

    status = 404
    default_sentence = "There is no such version here. /versions lists those that there are."


class Guarded(RequestError):
    """What anyone on the network could do if it were answered."""

    status = 403
    default_sentence = (
        "This is answered only to those who sign in, since the server can be reached from other "
        "machines. Set BASIC_AUTH_USER and BASIC_AUTH_PASS, here and in Label Studio."
    )


class HostRefused(RequestError):
    """The image's host is private and was not named as allowed."""

    status = 403
    default_sentence = (
        "The image lies on a private host. Name the host in EDGESAM_IMAGE_HOSTS to allow it."
    )


class UpstreamError(EdgeSamError):
    """Label Studio or an image host answered with an error, or not at all."""

    status = 502
    default_sentence = "The image's host did not answer as expected. Check that it is up."


class UpstreamTimeout(UpstreamError):
    """Label Studio or an image host took too long."""

    status = 504
    default_sentence = "The image's host took too long to answer. Try again."


class Unavailable(EdgeSamError):
    """Full or not ready yet; the same request may be answered later."""

    status = 503
    default_sentence = "The model is busy or still loading. Try again in a moment."


class TrainingUnavailable(Unavailable):
    """No training can be started or carried on here; what is served is not touched."""

    default_sentence = "Nothing can be trained here at the moment. The model that is served stays."


class BundleError(EdgeSamError):
    """A bundle that is torn, tampered with, or made for another version."""

    default_sentence = "The model bundle is damaged. Restore it or choose another one."


class VersionsError(EdgeSamError):
    """Trained versions cannot be kept or read; what was served stays."""

    status = 503
    default_sentence = "The folder of trained versions cannot be used. What was served stays."


class RunError(EdgeSamError):
    """Why a training run stopped; kept with the job."""

    default_sentence = "The training run stopped. Its log has the reason."
