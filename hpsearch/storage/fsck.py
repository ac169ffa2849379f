"""fsck: checks on a database what hpsearch promises, and repairs what can be repaired without making anything up.

    facts.read ─▶ examine ─▶ findings ─▶ repair: the cure of each, under the study's lock, until none is left

A finding says what is wrong with the study or with one trial. Its cure, if it has one, is a few statements; else it
says why there is none. A note is a finding that breaks no promise. The checks themselves are in `checks/`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from optuna.trial import TrialState
from sqlalchemy import Connection, func, insert, select, text, update

from hpsearch.artifacts import Checkpoints, study_prefix, trial_number
from hpsearch.errors import HpsearchError, UsageError
from hpsearch.storage import locks
from hpsearch.storage.checkpoints import open_checkpoints
from hpsearch.storage.checks import facts
from hpsearch.storage.checks.curves import check_curves, check_values
from hpsearch.storage.checks.findings import Finding
from hpsearch.storage.checks.numbers import check_budget, check_leases, check_numbers
from hpsearch.storage.checks.orphans import check_orphans
from hpsearch.storage.checks.recipes import check_configurations, check_recipes
from hpsearch.storage.events import REPAIRED
from hpsearch.storage.leases import now
from hpsearch.storage.open import Database
from hpsearch.storage.studies import LoadedStudy
from hpsearch.storage.tables import EVENTS, LEASES, TRIALS

OWNER = "fsck"  # of the leases that a repair takes from workers that vanished
MAX_PASSES = 10  # of repairs; one trial needs a few, as a value can be checked only once its curve is whole
LAST = 10**9  # beyond every epoch
UNREACHABLE = "name their place with HPSEARCH_ARTIFACTS, as the workers do"
BUSY = "it is being trained now; run fsck again when it has ended"


@dataclass(frozen=True)
class Report:
    """What fsck found of a study with so many trials: what it has repaired, and what is left, notes included."""

    num_trials: int
    repaired: tuple[Finding, ...]
    left: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is left that breaks a promise."""
        return not any(finding.damage for finding in self.left)


def run(database: Database, study: LoadedStudy, place: str, *, mend: bool) -> Report:
    """Check the study and its checkpoints, which are at `place`; with `mend`, repair and check again."""
    repaired: list[Finding] = []
    if mend:
        repaired = [*repair(database, study), *_files(database, study, place, mend=True)]
    left = [*check(database, study), *_files(database, study, place, mend=False)]
    with database.engine.connect() as connection:
        of_study = select(func.count()).where(TRIALS.c.study_id == study.study_id)
        num_trials = connection.scalars(of_study).one()
    return Report(num_trials, tuple(one for one in repaired if one.does), tuple(left))


def check(database: Database, study: LoadedStudy) -> list[Finding]:
    """Everything that is wrong or remarkable, as of one moment; changes nothing."""
    with database.engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")  # else each statement would see another state of the database
        else:
            connection.execution_options(isolation_level="REPEATABLE READ")
        found = examine(connection, study)
        connection.rollback()
    return found


def repair(database: Database, study: LoadedStudy) -> list[Finding]:
    """Apply every cure, all in one transaction under the study's lock; the findings that were cured.

    Nobody can write about a trial of the study meanwhile, and whoever lost a trial before cannot write afterwards.

    Raises:
        StorageError: the study has been deleted.
    """
    done: list[Finding] = []
    with database.engine.begin() as connection:
        locks.lock_study(connection, study.study_id)
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"LOCK TABLE {LEASES.name} IN EXCLUSIVE MODE"))  # every report begins there
        for _ in range(MAX_PASSES):
            curable = _one_for_each_trial(examine(connection, study))
            if not curable:
                break
            for finding in curable:
                _apply(connection, study, finding)
            done += curable
    return done


def examine(connection: Connection, study: LoadedStudy) -> list[Finding]:
    """The findings about the study, and about rows that belong to no study.

    Raises:
        HpsearchError: a row cannot be read.
    """
    known = _facts(connection, study)
    live = {trial.trial_id for trial in known.trials if trial.live}
    recipes = list(check_recipes(known))
    unsure = {finding.trial_id for finding in recipes}  # how many epochs they should have
    found = [
        *check_numbers(known),
        *check_budget(known),
        *recipes,
        *(one for one in check_curves(connection, known) if one.trial_id not in unsure),
        *check_leases(known),
        *check_configurations(known),
        *(one for one in check_values(known) if one.trial_id not in unsure),
        *check_orphans(connection),
    ]
    return [replace(one, cure=None, why_not=BUSY) if one.cure and one.trial_id in live else one for one in found]


def check_checkpoints(database: Database, study: LoadedStudy, place: Checkpoints, *, mend: bool) -> list[Finding]:
    """What is damaged, or left over from trials that have ended; `mend` deletes it. Live trials are left alone.

    A damaged checkpoint is no loss: the trial goes on from the one before. One that is left over is a note: workers
    delete those of a trial after its end is recorded, and while the next epoch trains.

    Raises:
        OSError: the place cannot be reached.
    """
    keys = place.keys(study_prefix(study.name, study.created))  # before the trials: of a later one it has none
    with database.engine.connect() as connection:
        known = sorted(_facts(connection, study).trials, key=lambda trial: not trial.ended)
    trials = {trial.number: trial for trial in known}  # of two with one number, the one that has not ended
    found = []
    for key in keys:
        number = trial_number(key)
        trial = trials.get(number)
        if trial is None or trial.ended:
            why = "it has ended" if trial else "there is no such trial"
            what = f"{key} in {place.place} is left over: {why}"
            found.append(Finding("checkpoint", what, number, does="deletes it", damage=False))
            if mend:
                place.forget(key)
        elif not trial.live and (damaged := place.damaged(key)):
            what = f"{' and '.join(damaged)} in {place.place}: the content does not match the hash"
            found.append(Finding("checkpoint", what, number, does="deletes it"))
            if mend:
                list(place.load(key, LAST))  # which deletes what is damaged
    return found


def _files(database: Database, study: LoadedStudy, place: str, *, mend: bool) -> list[Finding]:
    try:
        return check_checkpoints(database, study, open_checkpoints(place), mend=mend)
    except (OSError, UsageError) as error:
        return [Finding("checkpoint", f"checkpoints were not checked: {error}", why_not=UNREACHABLE, damage=False)]


def _facts(connection: Connection, study: LoadedStudy) -> facts.Facts:
    try:
        return facts.read(connection, study)
    except (LookupError, ValueError, TypeError, AssertionError) as error:
        raise HpsearchError(
            f"study {study.name}: its rows hold what neither hpsearch nor Optuna ever writes ({error}); "
            "restore a backup, as docs/operators.md says"
        ) from error


def _one_for_each_trial(findings: Sequence[Finding]) -> list[Finding]:
    """The first curable finding of each trial, and all that are about no single trial."""
    first: dict[int, Finding] = {}
    for finding in findings:
        if finding.cure and finding.trial_id is not None:
            first.setdefault(finding.trial_id, finding)
    return [*first.values(), *(one for one in findings if one.cure and one.trial_id is None)]


def _apply(connection: Connection, study: LoadedStudy, finding: Finding) -> None:
    assert finding.cure is not None
    for statement in finding.cure:
        connection.execute(statement)
    if finding.trial_id is not None and finding.state == TrialState.RUNNING:
        # Whoever had the trial may still be alive, and would go on where the record no longer is.
        taken = {"owner": OWNER, "token": LEASES.c.token + 1, "expires": 0.0}
        connection.execute(update(LEASES).where(LEASES.c.trial_id == finding.trial_id).values(taken))
    row = {"study_id": study.study_id, "trial_id": finding.trial_id, "at": now(connection), "kind": REPAIRED}
    told = finding.text if finding.trial_id is not None else finding.sentence
    connection.execute(insert(EVENTS).values(**row, text=f"{told}: {finding.does}"))
