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
from dataclasses import dataclass
from typing import Any

from backend import logs
from backend.encoding import Encoding
from backend.granularity import GranularitySettings, merge_rule
from backend.jobs import EncodeRequest
from backend.label_config import LabelConfig, parse_label_config
from backend.metrics import Metrics
from backend.model import ServedModel
from backend.models import Models
from backend.prompts import ObjectPrompt, Prompts, read_prompts
from backend.refinement import Refinement
from backend.results import ResultSettings, Suggested, clean_mask, regions_for
from backend.second_look import Look, SecondLook
from backend.superseded import Click, Clicks
from backend.task_pictures import image_uri, image_uris
from backend.working_set import WorkingSet
from edgesam_core.errors import ImageError, PromptError, RequestError
from edgesam_core.granularity import MergeRule
from edgesam_core.segmenter import with_proposed_box

Prediction = dict[str, Any]
"""``{"result": [...], "score": ..., "model_version": ...}``, one per task."""


@dataclass(frozen=True)
class _Asked:
    """What holds for all tasks and objects of a request, to its end."""

    project_id: int | None
    model: ServedModel
    config: LabelConfig
    rule: MergeRule | None
    # how proposed boxes join single clicks; None: they do not


class Engine:
    """Answers requests; holds what they share."""

    def __init__(
        self,
        models: Models,
        encoding: Encoding,
        refinement: Refinement,
        settings: ResultSettings,
        granularity: GranularitySettings,
        metrics: Metrics,
        clicks: Clicks,
        second_look: SecondLook,
        working_set: WorkingSet,
    ) -> None:
        """Put the parts together; app.py does it from the settings.

        Args:
            models: Which model answers which project.
            encoding: Where embeddings come from.
            refinement: Kept logits of earlier masks.
            settings: How masks become regions.
            granularity: Whether proposed boxes join single clicks, unless asked otherwise.
            metrics: Where times are counted.
            clicks: How many are answered at a time, and which are not wanted any more.
            second_look: Answers next clicks on small objects.
            working_set: Remembers which images are clicked on.
        """
        self.models = models
        self._encoding = encoding
        self._refinement = refinement
        self._settings = settings
        self._granularity = granularity
        self._metrics = metrics
        self._clicks = clicks
        self._second_look = second_look
        self._working_set = working_set

    def predict(
        self,
        project_id: int | None,
        label_config_xml: object,
        tasks: Sequence[Mapping[str, Any]],
        context: Mapping[str, Any] | None,
    ) -> list[Prediction]:
        """Masks for the prompts of a request.

        Args:
            project_id: Whose model answers; None: the server's own.
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
        model = self.models.of(project_id)
        record.model_version = model.version
        if context is None:
            return _empty(tasks, model, "no context, nobody clicked")
        prompts = read_prompts(context)
        if not prompts:
            return _empty(tasks, model, "no prompt in the context")
        if all(p.negatives_only for p in prompts):
            return _empty(tasks, model, "only negative clicks")
        config = parse_label_config(label_config_xml)
        asked = _Asked(project_id, model, config, self._merge_rule(context, config, model))
        return [self._answer(task, asked, prompts) for task in tasks]

    def images_of(
        self,
        project_id: int | None,
        tasks: Sequence[Mapping[str, Any]],
        label_config_xml: object,
    ) -> list[EncodeRequest]:
        """What clicks on these tasks would need encoded, in order; asks nobody.

        A task without a picture is passed over: whoever clicks on it is told.

        Raises:
            LabelConfigError: The config has no image, or asks for what the model lacks.
        """
        config = parse_label_config(label_config_xml)
        model = self.models.of(project_id)
        rule = self._merge_rule(None, config, model)
        requests = []
        for task in tasks:
            with suppress(ImageError, RequestError):
                requests += [
                    EncodeRequest(uri, _task_id(task), None, model.version, rule is not None)
                    for uri in image_uris(config.image(), _fields(task))
                ]
        return requests

    def _merge_rule(
        self, context: Mapping[str, Any] | None, config: LabelConfig, model: ServedModel
    ) -> MergeRule | None:
        return merge_rule(context, config.granularity_prior, self._granularity, model.manifest)

    def _answer(
        self, task: Mapping[str, Any], asked: _Asked, prompts: Sequence[Prompts]
    ) -> Prediction:
        """One task's regions."""
        regions: list[dict[str, Any]] = []
        scores: list[float] = []
        for on_image in prompts:
            picture = (_task_id(task), on_image.to_name, on_image.item_index)
            with self._clicks.answering(picture, on_image.region_ids) as click:
                for suggested, objects in self._suggest(task, asked, on_image, click):
                    scores.append(suggested.score)
                    with self._metrics.stage("result"):
                        regions += self._regions(asked.config, suggested, objects)
        logs.current().regions += len(scores)
        return _prediction(asked.model, regions, min(scores, default=0.0))

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
        self, task: Mapping[str, Any], asked: _Asked, prompts: Prompts, click: Click
    ) -> list[tuple[Suggested, ObjectPrompt]]:
        """The masks for all objects on one image."""
        tag, rule = asked.config.image(prompts.to_name), asked.rule
        if not prompts.objects:
            return []
        # A config that cannot hold the mask is told before an image is fetched for it.
        asked.config.outputs(tag.name, prompts.objects[0].labels)
        segmenter = asked.model.segmenter()
        uri = image_uri(tag, _fields(task), prompts.item_index)
        request = EncodeRequest(uri, _task_id(task), None, segmenter.version, rule is not None)
        key, embedding = self._encoding.for_click(segmenter, request, click)
        self._working_set.note(asked.project_id, request)
        with self._clicks.turn(click):
            prompts.check_size(embedding.original_size_hw)
            in_pixels = [p.in_pixels(embedding.original_size_hw) for p in prompts.objects]
            if segmenter.manifest.refines_with_mask_input:
                in_pixels = [self._refinement.extend(key, prompt) for prompt in in_pixels]
            decoded = in_pixels
            if rule is not None:
                decoded = [with_proposed_box(prompt, embedding, rule) for prompt in in_pixels]
            with self._metrics.stage("decode"):
                closer = [
                    self._second_look.answer(segmenter, key, embedding, prompt)
                    for prompt in in_pixels
                ]
                rest = [p for p, look in zip(decoded, closer, strict=True) if look is None]
                outputs = segmenter.decode(embedding, rest)
            with self._metrics.stage("mask"):
                whole = iter(segmenter.suggest(embedding, rest, outputs))
                looks = [
                    look or Look(next(whole), key, prompt)
                    for look, prompt in zip(closer, in_pixels, strict=True)
                ]
                masks = [clean_mask(look.suggestion.mask, self._settings) for look in looks]
        answers = []
        for drawn, prompt, joined, look, mask in zip(
            prompts.objects, in_pixels, decoded, looks, masks, strict=True
        ):
            if mask.area == 0:
                raise PromptError(
                    "The model finds nothing here. Click on another part of the object, or draw a "
                    "rectangle around it."
                )
            if segmenter.manifest.refines_with_mask_input:
                self._refinement.remember(look.key, look.prompt, look.suggestion.low_res_logits)
            self._second_look.answered(key, request, prompt, mask)
            suggested = Suggested(
                mask=mask,
                prompt=prompt,
                score=round(look.suggestion.score, 4),
                item_index=prompts.item_index,
                to_name=tag.name,
                version=segmenter.version,
                proposed_box_xyxy=None if joined is prompt else joined.box_xyxy,
            )
            answers.append((suggested, drawn))
        return answers


def _empty(tasks: Sequence[object], model: ServedModel, why: str) -> list[Prediction]:
    logs.current().note = f"empty result: {why}"
    return [_prediction(model, [], 0.0) for _ in tasks]


def _prediction(model: ServedModel, result: list[dict[str, Any]], score: float) -> Prediction:
    return {"result": result, "score": score, "model_version": model.version}


def _fields(task: Mapping[str, Any]) -> Mapping[str, Any]:
    fields = task.get("data")
    if not isinstance(fields, Mapping):
        raise RequestError("The task has no data. Send it as Label Studio does.")
    return fields


def _task_id(task: Mapping[str, Any]) -> int | None:
    task_id = task.get("id")
    return task_id if isinstance(task_id, int) and not isinstance(task_id, bool) else None
