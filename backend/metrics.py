"""What the operator sees at ``/metrics``: times, hits and errors, in Prometheus' form.

Each application has a registry of its own, so that tests and plugins do not meet in a global one.
Several web processes count in files of one folder (gunicorn.conf.py), and whichever is asked adds
them up. Every label has a small fixed set of values; no id, address or label of a project ever is
one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from backend import logs

CACHE_OUTCOMES = ("hit", "miss", "joined")
"""An embedding was there; was encoded here; another request or a worker was just encoding it."""

JOB_OUTCOMES = ("encoded", "failed", "late", "lost", "no_worker", "no_redis")
"""What became of a click's job; after all but the first the image was encoded in this process."""

PREFETCH_OUTCOMES = ("encoded", "queued", "warm", "failed", "dropped")
"""Encoded here; given to a worker; was encoded already; could not be; fell behind newer signals."""

SECOND_LOOK_OUTCOMES = ("used", "late", "left")
"""Answered on the crop; the crop was not encoded yet; the mask reached the crop's border."""

_SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 10, 30, 100)

MOST_VERSIONS = 50
"""Of the effort meter, those with most regions; the others are not shown."""


class EffortTotal(Protocol):
    """Sums over the regions of one version (effort.py)."""

    regions: int
    prompts: int
    untouched: int
    iou_sum: float
    iou_count: int


class _EffortCollector(Collector):
    """The effort meter, whose counts lie on the disk: every process shows the same.

    Gauges, since an annotation that is deleted is not counted any more.
    """

    def __init__(self, versions: Callable[[], Mapping[str, EffortTotal]]) -> None:
        self._versions = versions

    def collect(self) -> Iterable[Metric]:
        regions = GaugeMetricFamily(
            "edgesam_effort_regions",
            "Regions in submitted annotations, by the version that suggested them, or by_hand.",
            labels=["version"],
        )
        prompts = GaugeMetricFamily(
            "edgesam_effort_prompts", "Clicks and boxes drawn for those.", labels=["version"]
        )
        untouched = GaugeMetricFamily(
            "edgesam_effort_untouched_regions",
            "Those that were submitted as suggested.",
            labels=["version"],
        )
        iou = SummaryMetricFamily(
            "edgesam_effort_iou",
            "IoU of suggestion and submitted mask, where both are known.",
            labels=["version"],
        )
        totals = sorted(self._versions().items(), key=lambda item: -item[1].regions)
        for version, total in totals[:MOST_VERSIONS]:
            regions.add_metric([version], total.regions)
            prompts.add_metric([version], total.prompts)
            untouched.add_metric([version], total.untouched)
            iou.add_metric([version], total.iou_count, total.iou_sum)
        return regions, prompts, untouched, iou


class Metrics:
    """The counters of one application, in all its web processes."""

    def __init__(self) -> None:
        """Register everything; counters whose labels are known start at zero."""
        own = CollectorRegistry()
        self._shown = _of_all_processes() or own
        self.requests = Histogram(
            "edgesam_request_seconds",
            "Time to answer a request.",
            ["route", "status"],
            registry=own,
            buckets=_SECONDS,
        )
        self.stages = Histogram(
            "edgesam_stage_seconds",
            "Time spent in one stage of a click.",
            ["stage"],
            registry=own,
            buckets=_SECONDS,
        )
        self.embedding_cache = Counter(
            "edgesam_embedding_cache",
            "How a click found the embedding of its image.",
            ["outcome"],
            registry=own,
        )
        for outcome in CACHE_OUTCOMES:
            self.embedding_cache.labels(outcome)
        self.encode_jobs = Counter(
            "edgesam_encode_jobs",
            "What became of the jobs that clicks waited for.",
            ["outcome"],
            registry=own,
        )
        for outcome in JOB_OUTCOMES:
            self.encode_jobs.labels(outcome)
        self.prefetches = Counter(
            "edgesam_prefetches",
            "What became of the images that were to be encoded ahead of a click.",
            ["outcome"],
            registry=own,
        )
        for outcome in PREFETCH_OUTCOMES:
            self.prefetches.labels(outcome)
        self.second_looks = Counter(
            "edgesam_second_looks",
            "How next clicks on small objects were answered.",
            ["outcome"],
            registry=own,
        )
        for outcome in SECOND_LOOK_OUTCOMES:
            self.second_looks.labels(outcome)
        self.errors = Counter(
            "edgesam_errors",
            "Answers that were an error, by its code.",
            ["code"],
            registry=own,
        )
        self.model_info = Gauge(
            "edgesam_model_info",
            "The model that is served, as labels; always 1.",
            ["name", "version"],
            registry=own,
            multiprocess_mode="livemax",
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, for the histogram and for the request's log line."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.observe_stage(name, time.perf_counter() - started)

    def observe_stage(self, name: str, seconds: float) -> None:
        """Take note of a stage that was timed elsewhere."""
        self.stages.labels(name).observe(seconds)
        stage_ms = logs.current().stage_ms
        stage_ms[name] = stage_ms.get(name, 0.0) + seconds * 1000

    def show_effort(self, versions: Callable[[], Mapping[str, EffortTotal]]) -> None:
        """Show what annotators' work comes to, per version; asked for whenever somebody looks."""
        self._shown.register(_EffortCollector(versions))

    def text(self) -> bytes:
        """Everything in Prometheus' text form."""
        return generate_latest(self._shown)


def _of_all_processes() -> CollectorRegistry | None:
    """What the web processes of this server have counted; None where there is one alone."""
    registry = CollectorRegistry()
    try:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    except ValueError:  # no folder to count in
        return None
    return registry
