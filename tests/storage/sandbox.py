"""A study with a trial of every kind, and ways to damage it past hpsearch."""

import sqlite3
from pathlib import Path

import optuna
import psycopg
from optuna.trial import TrialState

from hpsearch.search.session import Session
from hpsearch.spec import parse
from hpsearch.storage import fleet, ledger
from hpsearch.storage.fsck import Report, run
from hpsearch.storage.leases import Lease
from hpsearch.storage.ledger import REASON_KEY, End
from hpsearch.storage.ledger import Report as Epoch
from hpsearch.storage.open import Database, create
from hpsearch.storage.studies import create_study, load_study
from hpsearch.storage.tables import METRICS
from tests.sessions import take
from tests.studies import TINY

COMPLETE, DONE, PRUNED, FAILED, ABANDONED, WAITING = range(6)  # the trials of the study, by number


class Sandbox:
    """A study with a trial of every kind, and a way to its database past hpsearch."""

    def __init__(self, database: Database, url: str, home: Path) -> None:
        self.database, self.url, self.place = database, url, str(home / "checkpoints")
        create_study(database, parse(TINY, "tiny.toml"), "tiny")
        self.study = load_study(database, "tiny")
        self.session = Session(database, self.study, fleet.Worker("me", "here", 1, "cpu"), 3600.0)
        self.leases = [assignment.lease for assignment in take(self.session, 6)]
        self.ids = [lease.trial_id for lease in self.leases]
        for number, epochs in ((COMPLETE, 3), (DONE, 3), (PRUNED, 2), (FAILED, 1), (ABANDONED, 2), (WAITING, 2)):
            for epoch in range(1, epochs + 1):
                self.report(self.leases[number], epoch, seconds=0.0 if number == ABANDONED else 3600.0)
        ledger.finish(
            database,
            [
                End(self.leases[COMPLETE], TrialState.COMPLETE, value_of(self.leases[COMPLETE], 3)),
                End(self.leases[DONE], TrialState.COMPLETE, value_of(self.leases[DONE], 3)),
                End(self.leases[PRUNED], TrialState.PRUNED, value_of(self.leases[PRUNED], 2), {REASON_KEY: "rung"}),
                End(self.leases[FAILED], TrialState.FAIL, None, {REASON_KEY: "broken"}),
            ],
        )
        ledger.release(database, [(self.leases[WAITING], 2)], "asked to stop")

    def report(self, lease: Lease, epoch: int, seconds: float = 3600.0) -> None:
        """Record one epoch."""
        value = value_of(lease, epoch)
        measured = dict.fromkeys(METRICS, 0.5) | {"validation_accuracy": value}
        assert ledger.report(self.database, [Epoch(lease, epoch, value, measured, 1.0)], seconds)

    def sql(self, *statements: str) -> None:
        """Run SQL as a person would who knows of no rules; {0} to {5} stand for the ids of the trials."""
        told = [statement.format(*self.ids, study=self.study.study_id) for statement in statements]
        self.database.close()
        if self.url.startswith("sqlite"):
            connection = sqlite3.connect(self.url.removeprefix("sqlite:///"))  # foreign keys are off
            for statement in told:
                assert connection.execute(statement).rowcount > 0, statement
            connection.commit()
            connection.close()
        else:
            with psycopg.connect(self.url.replace("+psycopg", "")) as server:
                server.execute("SET session_replication_role = replica")  # so are they here
                for statement in told:
                    assert server.execute(statement.encode()).rowcount > 0, statement

    def fsck(self, *, mend: bool = False) -> Report:
        """Run it."""
        return run(self.database, self.study, self.place, mend=mend)

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """What Optuna reads now, past every cache."""
        self.database.storage._finished_trials = None  # type: ignore[attr-defined]
        with create(self.url) as fresh:
            return load_study(fresh, "tiny").optuna_study.trials


def value_of(lease: Lease, epoch: int) -> float:
    """Something that differs for every epoch of every trial."""
    return 0.1 * epoch + 0.001 * lease.number + 1 / 3


def kinds(report: Report) -> list[str]:
    """The kinds of what is left and breaks a promise."""
    return [finding.kind for finding in report.left if finding.damage]
