"""The state of all studies and workers as Prometheus reads it, at `/hpsearch/metrics`.

Text format and naming: https://prometheus.io/docs/instrumenting/exposition_formats and /practices/naming.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from hpsearch.errors import StorageError
from hpsearch.storage import budget, fleet
from hpsearch.storage.events import KINDS
from hpsearch.storage.studies import Progress, progress
from hpsearch.storage.tables import EVENTS
from hpsearch.web.queries import Listed
from hpsearch.web.source import Source

__all__ = ["CONTENT_TYPE_LATEST", "exposed"]

STATES = (budget.RUNNING, budget.PAUSED, budget.STOPPED)


def exposed(source: Source) -> bytes:
    """All metrics, as of now."""
    registry = CollectorRegistry()
    registry.register(_Collector(source))
    return generate_latest(registry)


class _Collector(Collector):
    """Reads the database once for each scrape."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """What Prometheus asks for."""
        workers = fleet.workers(self._source.database)
        with self._source.database.engine.connect() as connection:
            counting = select(EVENTS.c.study_id, EVENTS.c.kind, func.count()).group_by(EVENTS.c.study_id, EVENTS.c.kind)
            happened = {(study_id, kind): number for study_id, kind, number in connection.execute(counting)}
        studies = list(self._studies())
        yield from _of_trials(studies)
        yield from _of_workers(workers, [listed.name for listed, now in studies if now.running])
        events = GaugeMetricFamily("hpsearch_events", "Recorded events, by kind.", labels=("study", "kind"))
        for listed, _ in studies:
            for kind in KINDS:  # those that have not happened as well: a rise from nothing is seen by no alarm
                events.add_metric((listed.name, kind), happened.get((listed.study_id, kind), 0))
        yield events

    def _studies(self) -> Iterator[tuple[Listed, Progress]]:
        for listed in self._source.listed():
            with contextlib.suppress(StorageError):  # it is damaged, or has been deleted meanwhile
                study = self._source.load(listed)
                if study is not None:
                    yield listed, progress(self._source.database, study)


def _of_trials(studies: Iterable[tuple[Listed, Progress]]) -> Iterator[Metric]:
    trials = GaugeMetricFamily("hpsearch_trials", "Trials, by state.", labels=("study", "state"))
    allowed = GaugeMetricFamily("hpsearch_trials_allowed", "Trials that the budget allows.", labels=("study",))
    abandoned = GaugeMetricFamily(
        "hpsearch_trials_abandoned", "Running trials whose lease has run out.", labels=("study",)
    )
    best = GaugeMetricFamily("hpsearch_best_value", "The best value of a complete trial.", labels=("study",))
    state = GaugeMetricFamily("hpsearch_study_state", "1 for what people have set.", labels=("study", "state"))
    for listed, now in studies:
        for name in ("complete", "pruned", "failed", "running", "waiting"):
            trials.add_metric((listed.name, name), getattr(now, name))
        allowed.add_metric((listed.name,), now.max_trials)
        abandoned.add_metric((listed.name,), now.abandoned)
        if now.best_value is not None:
            best.add_metric((listed.name,), now.best_value)
        for name in STATES:
            state.add_metric((listed.name, name), now.state == name)
    yield from (trials, allowed, abandoned, best, state)


def _of_workers(workers: list[fleet.WorkerRow], running: list[str]) -> Iterator[Metric]:
    number = GaugeMetricFamily("hpsearch_workers", "Workers, by what they do.", labels=("state",))
    speed = GaugeMetricFamily("hpsearch_images_per_second", "Training images of all workers.", labels=("study",))
    waiting = GaugeMetricFamily(
        "hpsearch_storage_wait_ratio", "The largest share of its time that a worker waits for the database."
    )
    states = Counter(worker.does for worker in workers)
    for name in ("training", "waiting", "paused", "silent"):
        number.add_metric((name,), states[name])
    busy = [worker for worker in workers if worker.alive and worker.study]
    for study in sorted({*running, *(worker.study or "" for worker in busy)}):
        speed.add_metric((study,), sum(worker.images_per_second for worker in busy if worker.study == study))
    waiting.add_metric((), max((worker.storage_share for worker in busy), default=0.0))
    yield from (number, speed, waiting)
