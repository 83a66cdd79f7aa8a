"""The whole click, without a framework: tasks and a context in, Label Studio's predictions out.

It knows neither Flask nor label_studio_ml; routes.py and plugin.py both call `Engine.predict`.
Nothing of a request is kept but embeddings and earlier logits under keys made from content, so
requests of any number of annotators, projects and images may run side by side.

An empty result means one of three things and the log says which: there was no context, no prompt
in it, or only negative clicks. Everything else is a mask or an error with a sentence.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

from backend import logs
from backend.embeddings import EmbeddingStore, Outcome, embedding_key
from backend.granularity import GranularitySettings, merge_rule
from backend.images import ImageLoader
from backend.jobs import EncodeRequest, Jobs
from backend.label_config import (
    ImageTag,
    LabelConfig,
    image_uri,
    image_uris,
    parse_label_config,
)
from backend.metrics import Metrics
from backend.model import ServedModel
from backend.prompts import ObjectPrompt, Prompts, read_prompts
from backend.refinement import Refinement
from backend.results import ResultSettings, Suggested, clean_mask, regions_for
from edgesam_core.encode import Embedding
from edgesam_core.errors import BundleError, ImageError, PromptError, RequestError
from edgesam_core.granularity import MergeRule
from edgesam_core.image import read_image
from edgesam_core.segmenter import Segmenter, with_proposed_box

Prediction = dict[str, Any]
"""``{"result": [...], "score": ..., "model_version": ...}``, one per task."""

Ahead = Literal["warm", "encoded", "queued"]
"""It was encoded already; was encoded here; a worker will see to it."""


class Engine:
    """Answers requests; holds what they share."""

    def __init__(
        self,
        model: ServedModel,
        images: ImageLoader,
        embeddings: EmbeddingStore,
        refinement: Refinement,
        settings: ResultSettings,
        metrics: Metrics,
        jobs: Jobs,
        *,
        max_pixels: int,
        granularity: GranularitySettings = GranularitySettings(),  # noqa: B008  frozen
    ) -> None:
        """Put the parts together; app.py does it from the settings.

        Args:
            model: The bundle that answers.
            images: Where images come from.
            embeddings: Kept embeddings.
            refinement: Kept logits of earlier masks.
            settings: How masks become regions.
            metrics: Where times and hits are counted.
            jobs: Workers that encode, if there are any.
            max_pixels: Width x height of the largest image that is read.
            granularity: Whether proposed boxes join single clicks, unless asked otherwise.
        """
        self.model = model
        self._images = images
        self._embeddings = embeddings
        self._refinement = refinement
        self._settings = settings
        self._metrics = metrics
        self._jobs = jobs
        self._max_pixels = max_pixels
        self._granularity = granularity

    def predict(
        self,
        project_id: int | None,
        label_config_xml: object,
        tasks: Sequence[Mapping[str, Any]],
        context: Mapping[str, Any] | None,
    ) -> list[Prediction]:
        """Masks for the prompts of a request.

        Args:
            project_id: For the log.
            label_config_xml: The project's labelling config as the request has it; not read where
                nothing was drawn.
            tasks: Label Studio's tasks, whole; only ``id`` and ``data`` are looked at.
            context: ``params.context``, None for a request that no one clicked for.

        Returns:
            Exactly one prediction per task, in order. Prompts carry no task id, so several tasks
            with a context (Label Studio never sends that) are each given the same prompts.

        Raises:
            EdgeSamError: With a sentence, for whatever goes wrong.
        """
        record = logs.current()
        record.project = project_id
        record.task_ids = tuple(_task_id(task) for task in tasks)
        record.model_version = self.model.version
        if context is None:
            return self._empty(tasks, "empty result: no context, nobody clicked")
        prompts = read_prompts(context)
        if not prompts:
            return self._empty(tasks, "empty result: no prompt in the context")
        if all(p.negatives_only for p in prompts):
            return self._empty(tasks, "empty result: only negative clicks")
        config = parse_label_config(label_config_xml)
        rule = self._merge_rule(context, config)
        return [self._answer(task, config, prompts, rule) for task in tasks]

    def images_of(
        self, tasks: Sequence[Mapping[str, Any]], label_config_xml: object
    ) -> list[EncodeRequest]:
        """What clicks on these tasks would need encoded, in order; asks nobody.

        A task without a picture is passed over: whoever clicks on it is told.

        Raises:
            LabelConfigError: The config has no image, or asks for what the model lacks.
        """
        config = parse_label_config(label_config_xml)
        rule, version = self._merge_rule(None, config), self.model.version
        requests = []
        for task in tasks:
            with suppress(ImageError, RequestError):
                requests += [
                    EncodeRequest(uri, _task_id(task), None, version, rule is not None)
                    for uri in image_uris(config.image(), _fields(task))
                ]
        return requests

    def encode_ahead(self, request: EncodeRequest) -> Ahead:
        """Have an image encoded that nobody waits for: by a worker, or here when nobody clicks.

        An image that is encoded already costs a look into the store and no fetch.

        Raises:
            EdgeSamError: Whatever stands between the address and its embedding.
        """
        segmenter = self.model.segmenter()

        def key_of(image_key: str) -> str:
            return embedding_key(
                image_key, segmenter.version, with_proposals=request.with_proposals
            )

        image_key = self._images.key(request.uri, request.task_id)
        if image_key is not None and self._embeddings.has(key_of(image_key)):
            return "warm"
        image = self._images.fetch(request.uri, task_id=request.task_id)
        key = key_of(image.sha256)
        if self._embeddings.has(key):
            return "warm"
        for_worker = replace(request, image_key=image.sha256, version=segmenter.version)
        if self._jobs.prefetch(for_worker, key=key):
            return "queued"

        def encode() -> Embedding:
            return self._encode(segmenter, image.data, with_proposals=request.with_proposals)

        return "encoded" if self._embeddings.encode_ahead(key, encode) else "warm"

    def encode(self, request: EncodeRequest) -> Outcome:
        """Do a job: encode its image into the shared store; "hit" where it lies there already.

        Raises:
            BundleError: The job was made for another version of the model.
            ImageError: The address gives other bytes than those that were clicked on.
            EdgeSamError: Whatever else stands between the address and its embedding.
        """
        segmenter = self.model.segmenter()
        if request.version != segmenter.version:
            raise BundleError(
                "This worker serves another version of the model than the one that clicks ask for. "
                "Start workers and servers with the same MODEL.",
                detail=f"{segmenter.version} here, {request.version} asked",
            )
        image = self._images.fetch(request.uri, task_id=request.task_id)
        if request.image_key not in (None, image.sha256):
            raise ImageError(
                "The image at this address has changed since it was clicked on. Click again."
            )
        key = embedding_key(image.sha256, segmenter.version, with_proposals=request.with_proposals)

        def encode() -> Embedding:
            return self._encode(segmenter, image.data, with_proposals=request.with_proposals)

        return self._embeddings.get_or_encode(key, encode)[1]

    def _merge_rule(
        self, context: Mapping[str, Any] | None, config: LabelConfig
    ) -> MergeRule | None:
        return merge_rule(context, config.granularity_prior, self._granularity, self.model.manifest)

    def _empty(self, tasks: Sequence[object], why: str) -> list[Prediction]:
        logs.current().note = why
        return [self._prediction([], 0.0) for _ in tasks]

    def _prediction(self, result: list[dict[str, Any]], score: float) -> Prediction:
        return {"result": result, "score": score, "model_version": self.model.version}

    def _answer(
        self,
        task: Mapping[str, Any],
        config: LabelConfig,
        prompts: Sequence[Prompts],
        rule: MergeRule | None,
    ) -> Prediction:
        """One task's regions."""
        regions: list[dict[str, Any]] = []
        scores: list[float] = []
        for on_image in prompts:
            for suggested, objects in self._suggest(task, config, on_image, rule):
                scores.append(suggested.score)
                with self._metrics.stage("result"):
                    regions += self._regions(config, suggested, objects)
        logs.current().regions += len(scores)
        return self._prediction(regions, min(scores, default=0.0))

    def _regions(
        self, config: LabelConfig, suggested: Suggested, drawn: ObjectPrompt
    ) -> list[dict[str, Any]]:
        regions: list[dict[str, Any]] = []
        outputs = config.outputs(
            suggested.to_name, drawn.labels, every_kind=self._settings.outputs == "all"
        )
        for output in outputs:
            if drawn.labels and not output.labels:
                logs.current().note = "region without a label: its control lacks the drawn one"
            regions += regions_for(suggested, output, self._settings)
        return regions

    def _suggest(
        self,
        task: Mapping[str, Any],
        config: LabelConfig,
        prompts: Prompts,
        rule: MergeRule | None,
    ) -> list[tuple[Suggested, ObjectPrompt]]:
        """The masks for all objects on one image."""
        tag = config.image(prompts.to_name)
        if not prompts.objects:
            return []
        # A config that cannot hold the mask is told before an image is fetched for it.
        config.outputs(tag.name, prompts.objects[0].labels)
        segmenter = self.model.segmenter()
        key, embedding, _ = self._embedding(
            segmenter, task, tag, prompts.item_index, with_proposals=rule is not None
        )
        prompts.check_size(embedding.original_size_hw)
        in_pixels = [p.in_pixels(embedding.original_size_hw) for p in prompts.objects]
        if segmenter.manifest.refines_with_mask_input:
            in_pixels = [self._refinement.extend(key, prompt) for prompt in in_pixels]
        decoded = in_pixels
        if rule is not None:
            decoded = [with_proposed_box(prompt, embedding, rule) for prompt in in_pixels]
        with self._metrics.stage("decode"):
            outputs = segmenter.decode(embedding, decoded)
        with self._metrics.stage("mask"):
            suggestions = segmenter.suggest(embedding, decoded, outputs)
            masks = [clean_mask(s.mask, self._settings) for s in suggestions]
        answers = []
        for drawn, prompt, joined, suggestion, mask in zip(
            prompts.objects, in_pixels, decoded, suggestions, masks, strict=True
        ):
            if mask.area == 0:
                raise PromptError(
                    "The model finds nothing here. Click on another part of the object, or draw a "
                    "rectangle around it."
                )
            if segmenter.manifest.refines_with_mask_input:
                self._refinement.remember(key, prompt, suggestion.low_res_logits)
            suggested = Suggested(
                mask=mask,
                prompt=prompt,
                score=round(suggestion.score, 4),
                item_index=prompts.item_index,
                to_name=tag.name,
                version=segmenter.version,
                proposed_box_xyxy=None if joined is prompt else joined.box_xyxy,
            )
            answers.append((suggested, drawn))
        return answers

    def _embedding(
        self,
        segmenter: Segmenter,
        task: Mapping[str, Any],
        tag: ImageTag,
        item_index: int | None,
        *,
        with_proposals: bool,
    ) -> tuple[str, Embedding, Outcome]:
        """Key and embedding of the image that was clicked on, and how it was found."""
        uri, task_id = image_uri(tag, _fields(task), item_index), _task_id(task)
        with self._metrics.stage("fetch"):
            image_key = self._images.key(uri, task_id)
        if image_key is not None:
            key = embedding_key(image_key, segmenter.version, with_proposals=with_proposals)
            kept = self._embeddings.get(key)
            if kept is not None:
                return self._found(key, kept, "hit")
        with self._metrics.stage("fetch"):
            image = self._images.fetch(uri, task_id=task_id)
        key = embedding_key(image.sha256, segmenter.version, with_proposals=with_proposals)
        asked = time.perf_counter()

        def encode() -> Embedding:
            self._metrics.observe_stage("wait", time.perf_counter() - asked)
            return self._encode(segmenter, image.data, with_proposals=with_proposals)

        request = EncodeRequest(uri, task_id, image.sha256, segmenter.version, with_proposals)
        embedding, outcome = self._embeddings.get_or_encode(
            key, encode, ask_worker=lambda: self._jobs.encode(request, key=key)
        )
        if outcome == "joined":
            self._metrics.observe_stage("wait", time.perf_counter() - asked)
        return self._found(key, embedding, outcome)

    def _found(
        self, key: str, embedding: Embedding, outcome: Outcome
    ) -> tuple[str, Embedding, Outcome]:
        """Count how an embedding was found; one cold image makes a request cold."""
        self._metrics.embedding_cache.labels(outcome).inc()
        record = logs.current()
        if record.temperature != "cold":
            record.temperature = "warm" if outcome == "hit" else "cold"
        return key, embedding, outcome

    def _encode(self, segmenter: Segmenter, data: bytes, *, with_proposals: bool) -> Embedding:
        with self._metrics.stage("read"):
            image = read_image(data, max_pixels=self._max_pixels)
        with self._metrics.stage("encode"):
            return segmenter.embed(image, with_proposals=with_proposals)


def _fields(task: Mapping[str, Any]) -> Mapping[str, Any]:
    fields = task.get("data")
    if not isinstance(fields, Mapping):
        raise RequestError("The task has no data. Send it as Label Studio does.")
    return fields


def _task_id(task: Mapping[str, Any]) -> int | None:
    task_id = task.get("id")
    return task_id if isinstance(task_id, int) and not isinstance(task_id, bool) else None
