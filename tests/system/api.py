"""Label Studio's API as the tests use it: projects, images, backends, annotations.

Independent of backend/label_studio.py on purpose: a test that asks with the code under test proves
less.
"""

from __future__ import annotations

import time
from typing import Any

import requests

from tests.servers import RunningLabelStudio

ACCESS_TOKEN_LIVES_S = 240
"""Label Studio's live 300 s."""


class LabelStudioApi:
    """Asks one Label Studio with a personal access token; a refusal fails the test."""

    def __init__(self, url: str, personal_access_token: str) -> None:
        self.url = url
        self._personal_access_token = personal_access_token
        self._session = requests.Session()
        self._fresh_until = 0.0

    @classmethod
    def of(cls, label_studio: RunningLabelStudio) -> LabelStudioApi:
        return cls(label_studio.url, label_studio.personal_access_token)

    def close(self) -> None:
        self._session.close()

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        """Any call, whatever its status."""
        if time.monotonic() > self._fresh_until:
            told = self._session.post(
                f"{self.url}/api/token/refresh",
                json={"refresh": self._personal_access_token},
                headers={"Authorization": None},
                timeout=60,
            )
            self._session.headers["Authorization"] = f"Bearer {told.json()['access']}"
            self._fresh_until = time.monotonic() + ACCESS_TOKEN_LIVES_S
        return self._session.request(method, self.url + path, timeout=120, **options)

    def call(self, method: str, path: str, **options: Any) -> Any:
        """A call that succeeds; its JSON."""
        answer = self.ask(method, path, **options)
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None

    def create_project(self, title: str, label_config: str) -> int:
        """An empty project; its id."""
        body = {"title": title[:50], "label_config": label_config}
        project_id: int = self.call("POST", "/api/projects", json=body)["id"]
        return project_id

    def import_tasks(self, project_id: int, *tasks: dict[str, Any]) -> list[int]:
        """Tasks by their data; their ids."""
        path = f"/api/projects/{project_id}/import?return_task_ids=true"
        ids: list[int] = self.call("POST", path, json=list(tasks))["task_ids"]
        return ids

    def upload(self, project_id: int, name: str, data: bytes) -> int:
        """An image as a person uploads it; the id of its task."""
        path = f"/api/projects/{project_id}/import?return_task_ids=true"
        (task_id,) = self.call("POST", path, files={"file": (name, data)})["task_ids"]
        return int(task_id)

    def upload_file(self, project_id: int, name: str, data: bytes) -> str:
        """An uploaded file without a task; its path as task data names it."""
        path = f"/api/projects/{project_id}/import?commit_to_project=false"
        (file_id,) = self.call("POST", path, files={"file": (name, data)})["file_upload_ids"]
        file = self.call("GET", f"/api/import/file-upload/{file_id}")["file"]
        return f"/data/{file}"

    def attach(self, project_id: int, url: str, **more: Any) -> requests.Response:
        """Connect a backend; Label Studio's answer, whatever it is."""
        body = {"project": project_id, "url": url, "title": "EdgeSAM", "is_interactive": True}
        return self.ask("POST", "/api/ml", json=body | more)

    def click(self, backend_id: int, task_id: int, *regions: dict[str, Any]) -> dict[str, Any]:
        """What the page gets for smart regions; HTTP 200 whatever happened."""
        answer: dict[str, Any] = self.call(
            "POST",
            f"/api/ml/{backend_id}/interactive-annotating",
            json={"task": task_id, "context": {"result": list(regions)}},
        )
        return answer

    def annotations(self, task_id: int) -> list[dict[str, Any]]:
        """What is stored for a task."""
        stored: list[dict[str, Any]] = self.call("GET", f"/api/tasks/{task_id}/annotations")
        return stored
