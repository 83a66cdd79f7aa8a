"""Label Studio as this backend asks it: about projects and tasks, with which token.

Where things lie is label_studio_address.py's part; the token goes there and nowhere else. Refusals
become sentences in refusals.py, images are fetched in images.py.

The paths were read in label-studio 1.23.2: ``jwt_auth/views.py``, ``data_manager/api.py``.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from urllib3.util import Url

from backend.access_token import AccessToken, is_personal
from backend.label_studio_address import LabelStudioAddress
from backend.refusals import explain_refusal, explain_refused_exchange
from backend.safe_http import Deadline, HttpAnswer, read_url, send
from edgesam_core.errors import (
    EdgeSamError,
    ImageError,
    RequestError,
    UpstreamError,
    UpstreamTimeout,
)

_JSON_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class LabelStudioSettings:
    """Where Label Studio is and how to be let in."""

    url: str = "http://localhost:8080"
    # Address of Label Studio as this backend reaches it, path prefix and all.
    api_key: str | None = field(default=None, repr=False)
    # Personal access token (or legacy token) of a user who may see the projects; it goes to
    # Label Studio's address alone. Without it, images uploaded there cannot be fetched.
    timeout_s: float = 10.0
    # Seconds for one question about tokens, projects and tasks; images have their own limit.

    def __post_init__(self) -> None:
        """Refuse an address that cannot be asked.

        Raises:
            ValueError: With the name of the field.
        """
        try:
            parts = read_url(self.url)
        except ImageError as exc:
            raise ValueError(
                "LABEL_STUDIO_URL must be an http or https address, such as http://localhost:8080."
            ) from exc
        if parts.query or parts.fragment or parts.auth:
            raise ValueError("LABEL_STUDIO_URL must be an address without user, query or fragment.")
        api_key = (self.api_key or "").strip()
        if not re.fullmatch(r"[!-~]*", api_key):
            raise ValueError("LABEL_STUDIO_API_KEY holds what no token has. Copy it again.")
        object.__setattr__(self, "url", self.url.strip().rstrip("/"))
        object.__setattr__(self, "api_key", api_key or None)


class LabelStudioClient:
    """Asks Label Studio, with its token; thread-safe, keeps no connection."""

    def __init__(
        self, settings: LabelStudioSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Sends nothing yet.

        Args:
            settings: Address and token.
            clock: For the access token's lifetime; seconds, never going back.
        """
        self._settings = settings
        self.address = LabelStudioAddress(settings.url)
        self._token = AccessToken(settings.api_key, self._exchange_token, clock)

    @property
    def token_kind(self) -> str:
        """What kind of token this is, for people: "legacy token", for instance."""
        if not self._settings.api_key:
            return "no token"
        return "personal access token" if is_personal(self._settings.api_key) else "legacy token"

    @property
    def has_token(self) -> bool:
        """Whether it can be asked about projects and tasks."""
        return self._settings.api_key is not None

    def authorization(self) -> dict[str, str]:
        """The header that lets a request in; empty without a token.

        Raises:
            UpstreamError: The personal access token was refused.
        """
        return self._token.header()

    def send(
        self,
        url: str,
        *,
        deadline: Deadline,
        max_bytes: int,
        headers: Mapping[str, str] | None = None,
        with_token: bool = True,
    ) -> HttpAnswer:
        """GET one of Label Studio's own addresses, with the token; redirects are not followed.

        An access token that is refused before its time, after a restart of Label Studio for
        instance, is exchanged once more.

        Raises:
            UpstreamError: Unreachable, or the token could not be exchanged.
            ImageTooLarge: The body is over ``max_bytes``.
        """
        assert self.address.owns(url), "the token is only for Label Studio"
        parts = read_url(url)
        plain = dict(headers or {})
        letter = self.authorization() if with_token else {}
        answer = self._send("GET", parts, deadline, max_bytes, plain | letter)
        if answer.status == 401 and self._token.forget(letter):
            answer = self._send("GET", parts, deadline, max_bytes, plain | self.authorization())
        return answer

    def get_json(self, path: str, *, with_token: bool = True, **query: str | int) -> Any:
        """What Label Studio's API answers to a GET.

        Args:
            path: Such as ``/api/projects/``, without the prefix.
            with_token: False for what anyone may ask.
            query: The part after the question mark.

        Raises:
            UpstreamError: Any refusal, as a sentence.
        """
        url = self.address.resolve(path) + (f"?{urlencode(query)}" if query else "")
        deadline = Deadline(self._settings.timeout_s)
        answer = self.send(url, deadline=deadline, max_bytes=_JSON_BYTES, with_token=with_token)
        if not 200 <= answer.status < 300:
            raise self.explain(answer)
        return self._json(answer)

    def project(self, project_id: int) -> dict[str, Any]:
        """A project as the API has it.

        Raises:
            RequestError: There is none with this number that the token's owner can see.
            UpstreamError: Any other refusal, as a sentence.
        """
        try:
            found: dict[str, Any] = self.get_json(f"/api/projects/{project_id}/")
        except RequestError as exc:  # a 404 is about the caller's number here, not about a file
            raise RequestError(
                f"Label Studio has no project {project_id} that the token's owner can see. "
                "The number stands in the project's address in the browser."
            ) from exc
        return found

    def tasks(
        self, project_id: int, *, after: int = 0, count: int, unlabelled: bool = True
    ) -> list[dict[str, Any]]:
        """Tasks of a project in the order of their ids, which is that of sequential labelling.

        Which task Label Studio serves next it tells only to a person, and locks it for them. Asking
        for this list changes nothing and makes it ask nobody (data_manager/api.py: TaskListAPI).

        Args:
            project_id: The project.
            after: Only tasks with larger ids.
            count: How many at most.
            unlabelled: Only those that still want an annotation.

        Raises:
            UpstreamError: Any refusal, as a sentence.
        """
        filters: list[dict[str, Any]] = [
            {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": after}
        ]
        if unlabelled:
            filters.append(
                {
                    "filter": "filter:tasks:completed_at",
                    "operator": "empty",
                    "type": "Datetime",
                    "value": True,
                }
            )
        query = {"filters": {"conjunction": "and", "items": filters}, "ordering": ["tasks:id"]}
        return self._list_tasks(project_id, query, count, "task_only")

    def tasks_with_annotations(
        self, project_id: int, task_ids: Sequence[int]
    ) -> list[dict[str, Any]]:
        """These tasks of a project in the order of their ids, with all their annotations.

        Skipped ones are among them. Tasks that are gone are left out, without a word.

        Raises:
            ImageTooLarge: They are more than one answer may hold; ask for fewer.
            UpstreamError: Any refusal, as a sentence.
        """
        selected = {"all": False, "included": list(task_ids)}
        query = {"selectedItems": selected, "ordering": ["tasks:id"]}
        return self._list_tasks(project_id, query, len(task_ids), "all")

    def _list_tasks(
        self, project_id: int, query: dict[str, Any], count: int, fields: str
    ) -> list[dict[str, Any]]:
        listed = self.get_json(
            "/api/tasks",
            project=project_id,
            page_size=count,
            fields=fields,
            resolve_uri="false",  # addresses as /predict has them
            review="true",  # else it might have predictions made for these tasks first, by us
            query=json.dumps(query),
        )
        tasks = listed.get("tasks") if isinstance(listed, dict) else None
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            raise UpstreamError("Label Studio's list of tasks has a form that is not known here.")
        return tasks

    def explain(self, answer: HttpAnswer) -> EdgeSamError:
        """What an answer of Label Studio that is no success means, and the cure."""
        return explain_refusal(answer, self._settings.api_key)

    def _exchange_token(self, personal: str) -> str:
        answer = self._send(
            "POST",
            read_url(self.address.resolve("/api/token/refresh/")),
            Deadline(self._settings.timeout_s),
            _JSON_BYTES,
            {"Content-Type": "application/json"},
            json.dumps({"refresh": personal}).encode(),
        )
        if answer.status == 401:
            raise explain_refused_exchange(answer, personal)
        if not 200 <= answer.status < 300:
            raise self.explain(answer)
        access = self._json(answer).get("access")
        if not isinstance(access, str) or not access:
            raise explain_refused_exchange(answer, personal)
        return access

    def _send(
        self,
        method: str,
        url: Url,
        deadline: Deadline,
        max_bytes: int,
        headers: Mapping[str, str],
        body: bytes | None = None,
    ) -> HttpAnswer:
        try:
            return send(
                method,
                url,
                deadline=deadline,
                max_bytes=max_bytes,
                private_allowed=True,
                headers=headers,
                body=body,
            )
        except UpstreamTimeout as exc:
            raise UpstreamTimeout(
                f"Label Studio took longer than {deadline.seconds:g} s to answer. Try again, and "
                "look at its load if that does not help."
            ) from exc
        except UpstreamError as exc:
            raise UpstreamError(
                f"Label Studio cannot be asked at LABEL_STUDIO_URL. {exc.sentence} "
                "Inside a container, localhost is the container itself.",
                detail=exc.detail,
            ) from exc

    def _json(self, answer: HttpAnswer) -> Any:
        try:
            return json.loads(answer.body)
        except ValueError as exc:
            raise UpstreamError(
                "What answers at LABEL_STUDIO_URL is not Label Studio. Correct the address; "
                "a path prefix belongs to it."
            ) from exc
