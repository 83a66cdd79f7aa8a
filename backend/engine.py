"""The whole click, without a framework: tasks and a context in, Label Studio's predictions out.

It knows neither Flask nor label_studio_ml; routes.py and plugin.py both call `Engine.predict`.
Nothing of a request is kept but embeddings and earlier logits under keys made from content, so
requests of any number of annotators, projects and images may run side by side.

An empty result means one of three things and the log says which: there was no context, no prompt
in it, or only negative clicks. Everything else is a mask or an error with a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from backend import logs
from backend.encoding import Encoding
from backend.granularity import GranularitySettings, merge_rule
from backend.jobs import EncodeRequest
from backend.label_config import LabelConfig, image_uri, image_uris, parse_label_config
from backend.metrics import Metrics
from backend.model import ServedModel
from backend.prompts import ObjectPrompt, Prompts, read_prompts
from backend.refinement import Refinement
from backend.results import ResultSettings, Suggested, clean_mask, regions_for
from edgesam_core.errors import ImageError, PromptError, RequestError
from edgesam_core.granularity import MergeRule
from edgesam_core.segmenter import with_proposed_box

Prediction = dict[str, Any]
"""``{"result": [...], "score": ..., "model_version": ...}``, one per task."""


class Engine:
    """Answers requests; holds what they share."""

    def __init__(
        self,
        model: ServedModel,
        encoding: Encoding,
        refinement: Refinement,
        settings: ResultSettings,
        granularity: GranularitySettings,
        metrics: Metrics,
    ) -> None:
        """Put the parts together; app.py does it from the settings.

        Args:
            model: The bundle that answers.
            encoding: Where embeddings come from.
            refinement: Kept logits of earlier masks.
            settings: How masks become regions.
            granularity: Whether proposed boxes join single clicks, unless asked otherwise.
            metrics: Where times are counted.
        """
        self.model = model
        self._encoding = encoding
        self._refinement = refinement
        self._settings = settings
        self._granularity = granularity
        self._metrics = metrics

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
        uri = image_uri(tag, _fields(task), prompts.item_index)
        request = EncodeRequest(uri, _task_id(task), None, segmenter.version, rule is not None)
        key, embedding = self._encoding.for_click(segmenter, request)
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


def _fields(task: Mapping[str, Any]) -> Mapping[str, Any]:
    fields = task.get("data")
    if not isinstance(fields, Mapping):
        raise RequestError("The task has no data. Send it as Label Studio does.")
    return fields


def _task_id(task: Mapping[str, Any]) -> int | None:
    task_id = task.get("id")
    return task_id if isinstance(task_id, int) and not isinstance(task_id, bool) else None
