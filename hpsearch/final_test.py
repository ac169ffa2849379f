"""The final test: opens the test split once, for the confirmed winner, and records that it did.

Nothing else imports `hpsearch.sealed`. What is tested, and from which weights, is settled before the seal is opened.
"""

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np

from hpsearch import confirm
from hpsearch.data.images import Source, split_name
from hpsearch.data.load import DataSet
from hpsearch.errors import DataError, HpsearchError, StorageAway, StorageError, UsageError
from hpsearch.events import WorkerWarned
from hpsearch.interrupt import Interruption
from hpsearch.patience import Patience
from hpsearch.scores import BINS, Scores, coarse, scores, summed
from hpsearch.sealed.images import SealedImages, open_seal
from hpsearch.settings import Settings
from hpsearch.statistics import estimate
from hpsearch.storage import openings
from hpsearch.storage.open import Database
from hpsearch.storage.studies import LoadedStudy
from hpsearch.trained import Chosen, Say, choose, data_of, network, probabilities

OVER_SEEDS = ("accuracy", "macro_f1", "calibration_error", "log_loss", "brier")


def final_test(
    database: Database, study: LoadedStudy, settings: Settings, again: str | None, say: Say
) -> dict[str, Any]:
    """Test the study's winner over all of its seeds; of a comparison with a target, every candidate. The record.

    Raises:
        UsageError: nothing is confirmed yet, the study confirms another one, or the split was opened before and `again`
            gives no reason.
        DataError: there is no test split, it cannot be read, or the trials saw other images; nothing is recorded.
        HpsearchError: a network is not the one that was trained, and nothing is recorded; or the storage is away when
            the result is there, which the message has.
    """
    link = confirm.link_of(study)
    if link.get("kind") == confirm.CONFIRM:
        if sentence := confirm.orphaned(database, study):
            raise UsageError(sentence)
        raise UsageError(
            f"study {study.name}: confirms {link['study']}, whose test split is opened once, for the winner of both; "
            f"run `hpsearch final-test {link['study']}`"
        )
    known = openings.numbered(database, study)
    before, number = list(known.values()), max(known, default=-1) + 1
    if before and not again:
        what = (
            f"The result is recorded: see `hpsearch final-test {study.name} --show`"
            if any("result" in record for record in before)
            else "No result was recorded"
        )
        raise UsageError(
            f"study {study.name}: its test split was opened on {before[-1]['time']}; a second look makes it a second "
            f"validation set. {what}; if it must be, give the reason with --again REASON, and the record shows it"
        )
    chosen = choose(database, study, say=say)
    tested = chosen if link.get("kind") == "transfer" else chosen[:1]
    dataset = data_of(tested[0].study, settings)
    networks = [[network(one.study, trial, dataset, settings, say).model for trial in one.trials] for one in tested]
    record = _opening(study, tested, dataset, again if before else None)
    openings.begin(database, study, number, record)
    try:
        sealed = open_seal(_source(study, settings), dataset.classes)
    except DataError:
        openings.withdraw(database, study, number)
        raise
    found = [
        _result(one, [probabilities(net, sealed.images, dataset) for net in nets], sealed)
        for one, nets in zip(tested, networks, strict=True)
    ]
    record |= {"num_images": len(sealed.labels), "test_fingerprint": sealed.fingerprint}
    record |= {"other_images": _exchanged(record, before), "result": found[0], "results": found}
    _complete(database, study, number, record, settings, say)
    return record


def _exchanged(record: dict[str, Any], before: list[dict[str, Any]]) -> str | None:
    """When the test split was opened last and held other images, if it did."""
    known = [one for one in before if "test_fingerprint" in one]
    return known[-1]["time"] if known and known[-1]["test_fingerprint"] != record["test_fingerprint"] else None


def _complete(
    database: Database, study: LoadedStudy, number: int, record: dict[str, Any], settings: Settings, say: Say
) -> None:
    """Add the result to the opening; wait for a storage that is away, as a worker does.

    Raises:
        HpsearchError: it stays away, the process was asked to stop, or the study is gone; the message has the scores.
    """
    interruption = Interruption()
    patience = Patience(database, settings, interruption)
    try:
        with interruption.listening():
            for warning in patience.patiently(lambda: openings.complete(database, study, number, record)):
                if isinstance(warning, WorkerWarned):
                    say(warning.message)
    except (StorageAway, StorageError) as error:
        told = ("label", "seeds", "planned", "lost", "validation", *OVER_SEEDS)
        gone = isinstance(error, StorageError)
        why = "the study has been deleted" if gone else "the storage could not be reached"
        advice = "" if gone else "; another look needs --again REASON"
        scored = [{key: result[key] for key in told} for result in record["results"]]
        raise HpsearchError(
            f"study {study.name}: the test split was opened, and the result could not be recorded ({why}), so keep "
            f"this line: {json.dumps(scored)}{advice}"
        ) from error


def _source(study: LoadedStudy, settings: Settings) -> Source:
    data = study.spec.data
    downloads = settings.datasets / "downloads"
    return Source(data.name, split_name(data.name)[1], settings.data_dir, downloads, data.image_size)


def _opening(study: LoadedStudy, tested: list[Chosen], dataset: DataSet, again: str | None) -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "study": study.name,
        "data": study.spec.data.name,
        "fingerprint": dataset.fingerprint,
        "classes": list(dataset.classes),
        "configuration": confirm.configuration(tested[0].recipe),
        "model": tested[0].recipe.model,
        "again": again,
    }


def _result(one: Chosen, predicted: list[Any], sealed: SealedImages) -> dict[str, Any]:
    """What all seeds of one configuration give; confusions are summed over them, per-class figures averaged.

    `planned` and `lost` say how many seeds there were to be, and how many of them diverged or failed.
    """
    found = [scores(each, sealed.labels) for each in predicted]
    result: dict[str, Any] = {
        "label": one.label,
        "configuration": confirm.configuration(one.recipe),
        "seeds": [recipe["seed"] for recipe in (trial.user_attrs["hpsearch:recipe"] for trial in one.trials)],
        "planned": one.planned,
        "lost": one.lost,
        "validation": [trial.value for trial in one.trials],
    }
    for name in OVER_SEEDS:
        values = [getattr(each, name) for each in found]
        result[name] = {"values": values, **estimate(values).as_dict()}
    for name in ("precision", "recall"):
        result[name] = np.mean([getattr(each, name) for each in found], axis=0).tolist()
    result["confusion"] = summed([each.confusion for each in found])
    result["reliability"] = _pooled(found)
    if sealed.superclasses is not None:
        rough = [coarse(each, sealed.labels, sealed.superclasses.of) for each in predicted]
        values = [accuracy for accuracy, _ in rough]
        result["superclasses"] = {
            "names": list(sealed.superclasses.names),
            "accuracy": {"values": values, **estimate(values).as_dict()},
            "confusion": summed([confusion for _, confusion in rough]),
        }
    return result


def _pooled(found: list[Scores]) -> list[tuple[float, float, int]]:
    """Reliability over all seeds, bin by bin of the confidence."""
    bins: dict[int, list[tuple[float, float, int]]] = {}
    for each in found:
        for row in each.reliability:
            bins.setdefault(min(int(row[0] * BINS), BINS - 1), []).append(row)
    pooled = []
    for rows in (bins[key] for key in sorted(bins)):
        total = sum(num for _, _, num in rows)
        sure, right = (sum(row[i] * row[2] for row in rows) / total for i in (0, 1))
        pooled.append((sure, right, total))
    return pooled
