"""The view: what Optuna's public API reads from the database, whatever happened and however it was synchronised."""

import math
import random
from collections.abc import Iterator
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import update

from hpsearch.search import SAMPLERS
from hpsearch.search.asking import ask, suggest
from hpsearch.search.pruners import failing, make_pruner, rungs
from hpsearch.search.samplers import make_sampler
from hpsearch.search.view import View
from hpsearch.spec import StudySpec, parse
from hpsearch.storage import budget, ledger
from hpsearch.storage.leases import Lease
from hpsearch.storage.ledger import End, Report
from hpsearch.storage.open import Database, create
from hpsearch.storage.studies import LoadedStudy, create_study, load_study
from hpsearch.storage.tables import LEASES, METRICS
from tests.studies import TINY

MEASURED = dict.fromkeys(METRICS, 0.5)
NINE_EPOCHS = TINY.replace("epochs = 3", "epochs = 9").replace("trials = 6", "trials = 1000")


class Bench:
    """One study, its view that is synchronised after every step, and what Optuna reads."""

    def __init__(self, database: Database, url: str, text: str = NINE_EPOCHS) -> None:
        self.database, self.spec = database, parse(text, "test.toml")
        create_study(database, self.spec, "s")
        self.study = load_study(database, "s")
        self.rungs = rungs(make_pruner(self.spec))
        self.view = View(database, self.study, self.rungs)
        self.view.sync()
        self.optunas = RDBStorage(url)

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_: object) -> None:
        self.optunas.remove_session()
        self.optunas.engine.dispose()

    def take(self, num: int, owner: str = "me", seconds: float = 60.0) -> list[Lease]:
        plan = budget.Plan(self.spec.budget, self.spec.max_epochs, True)
        return list(ledger.take(self.database, self.study.study_id, num, owner, seconds, plan).leases)

    def draw_up(self, leases: list[Lease]) -> None:
        view = View(self.database, self.study, self.rungs)  # of another worker
        view.sync()
        drawn = [ask(view, self.spec, lease, 0, None)[0] for lease in leases]
        accepted, doubles = ledger.set_up(self.database, self.study.study_id, drawn)
        assert (len(accepted), doubles) == (len(leases), set())

    def report(self, lease: Lease, epoch: int, value: float) -> None:
        assert ledger.report(self.database, [Report(lease, epoch, value, MEASURED)], 60.0)

    def end(self, lease: Lease, state: TrialState, value: float | None, **system_attrs: Any) -> None:
        assert ledger.finish(self.database, [End(lease, state, value, {"note": 1}, system_attrs)])

    def check(self) -> None:
        """The view, one made anew, and Optuna on a connection of its own agree."""
        self.view.sync()
        fresh = View(self.database, self.study, self.rungs)
        fresh.sync()
        self.optunas.remove_session()
        theirs = optuna.load_study(study_name="s", storage=self.optunas).get_trials(deepcopy=False)
        assert [trial.number for trial in theirs] == [trial.number for trial in self.view.trials()]
        assert list(self.view.trials()) == self.view.study.get_trials(deepcopy=False)
        for view in (self.view, fresh):
            for ours, other in zip(view.trials(), theirs, strict=True):
                same(ours, other, self.rungs)


def same(ours: FrozenTrial, theirs: FrozenTrial, rungs: frozenset[int] | None) -> None:
    """One trial of the view is that of Optuna; of the values, those at rungs and the last one must be there."""
    assert ours._trial_id == theirs._trial_id
    assert ours.last_step == theirs.last_step
    for name in ("number", "state", "values", "params", "distributions", "datetime_start", "datetime_complete"):
        assert getattr(ours, name) == getattr(theirs, name), (ours.number, name)
    assert list(ours.params) == list(theirs.params)
    for name in ("constraints", "duration"):
        assert getattr(ours, name) == getattr(theirs, name), (ours.number, name)
    assert ours.system_attrs.get("fixed_params") == theirs.system_attrs.get("fixed_params")
    given, known = theirs.intermediate_values, ours.intermediate_values
    assert {step: repr(value) for step, value in known.items()}.items() <= {
        step: repr(value) for step, value in given.items()
    }.items()
    wanted = given.keys() if rungs is None else given.keys() & (rungs | {max(given, default=0)})
    assert known.keys() >= wanted


@pytest.fixture
def bench(storage_url: str) -> Iterator[Bench]:
    """The study `s`, whose first trial waits with known good values."""
    with create(storage_url) as database, Bench(database, storage_url) as bench:
        yield bench


def test_a_waiting_trial_and_new_ones(bench: Bench) -> None:
    bench.check()
    assert next(iter(bench.view.trials())).system_attrs["fixed_params"]["optimizer"] == "sgd"
    leases = bench.take(4)
    bench.check()
    bench.draw_up(leases[:2])
    bench.check()
    bench.draw_up(leases[2:])
    bench.study.optuna_study.enqueue_trial({"optimizer": "adam"})
    bench.check()
    assert all(trial.params for trial in list(bench.view.trials())[:4])


@pytest.mark.parametrize("value", [0.25, math.nan, math.inf, -math.inf, 0.0, 1e-300])
def test_reports(bench: Bench, value: float) -> None:
    first, second = bench.take(2)
    for epoch in range(1, 6):
        bench.report(first, epoch, value)
        if epoch % 2:
            bench.report(second, (epoch + 1) // 2, value)
        bench.check()
    bench.report(first, 6, 0.5)
    bench.report(first, 7, value)  # two epochs between two looks
    bench.check()
    assert repr(bench.view.trial(first.trial_id).intermediate_values[7]) == repr(value)


@pytest.mark.parametrize(
    ("state", "value"),
    [
        (TrialState.COMPLETE, 0.25),
        (TrialState.COMPLETE, math.inf),
        (TrialState.COMPLETE, -math.inf),
        (TrialState.PRUNED, 0.25),
        (TrialState.PRUNED, None),
        (TrialState.FAIL, None),
    ],
)
@pytest.mark.parametrize("seen", [True, False])
def test_ends(bench: Bench, state: TrialState, value: float | None, seen: bool) -> None:
    leases = bench.take(3)
    bench.draw_up(leases)
    for epoch in (1, 2, 3, 4):
        bench.report(leases[0], epoch, 0.1 * epoch)
    if seen:
        bench.check()
    bench.report(leases[0], 5, 0.5)
    bench.end(leases[0], state, value)  # with a last epoch that the view has not seen
    bench.end(leases[1], state, value, **{"constraints:memory": 1.0})
    bench.check()
    assert (bench.view.trial(leases[1].trial_id).constraints or {}) == {"memory": 1.0}
    bench.end(leases[2], TrialState.FAIL, None)
    bench.check()


def test_a_trial_that_begins_and_ends_between_two_looks(bench: Bench) -> None:
    bench.take(1)
    lease = bench.take(1)[0]
    bench.draw_up([lease])
    bench.report(lease, 1, 0.5)
    bench.end(lease, TrialState.PRUNED, 0.5)
    bench.check()


def test_trials_that_optuna_itself_makes_and_ends(bench: Bench) -> None:
    study = bench.study.optuna_study
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    study.ask()
    trial = study.ask()
    trial.suggest_float("learning_rate", 1e-3, 1e-1, log=True)
    bench.check()
    study.tell(trial, 0.5)
    study.tell(0, state=TrialState.FAIL)
    bench.check()


def test_release_and_resumption(bench: Bench) -> None:
    lease = bench.take(1)[0]
    bench.draw_up([lease])
    for epoch in (1, 2, 3, 4):
        bench.report(lease, epoch, 0.1 * epoch)
    bench.check()
    ledger.release(bench.database, [(lease, 2)], "asked to stop")
    bench.check()
    assert bench.view.trial(lease.trial_id).last_step == 2
    again = bench.take(1)[0]
    assert (again.trial_id, again.epoch) == (lease.trial_id, 2)
    bench.check()
    for epoch in (3, 4, 5):
        bench.report(again, epoch, 1.0 + epoch)
    bench.check()
    assert bench.view.trial(lease.trial_id).intermediate_values[3] == 4.0


@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize("last", [4, 5, 7])
@pytest.mark.parametrize("pruner", ["asha", "median"])
def test_values_that_are_cut_back_and_reported_again(storage_url: str, last: int, looks: bool, pruner: str) -> None:
    text = NINE_EPOCHS.replace('name = "asha"', f'name = "{pruner}"')
    with create(storage_url) as database, Bench(database, storage_url, text) as bench:
        cut_back(bench, last, looks)


def cut_back(bench: Bench, last: int, looks: bool) -> None:
    lease = bench.take(1)[0]
    for epoch in range(1, 6):
        bench.report(lease, epoch, 0.1 * epoch)
    bench.check()
    ledger.release(bench.database, [(lease, 5)], "asked to stop")
    again = bench.take(1)[0]
    bench.check()
    assert ledger.cut_back(bench.database, again, 2)
    if looks:
        bench.check()
    for epoch in range(3, last + 1):  # on a machine that computes a little differently
        bench.report(again, epoch, 0.11 * epoch)
        if looks:
            bench.check()
    bench.check()
    bench.end(again, TrialState.PRUNED, 0.11 * last)
    bench.check()


def test_adoption(bench: Bench) -> None:
    old = bench.take(1, "old", seconds=0.0)[0]
    bench.draw_up([old])
    bench.report(old, 1, 0.1)
    bench.report(old, 2, 0.2)
    bench.check()
    with bench.database.engine.begin() as connection:
        connection.execute(update(LEASES).values(expires=0.0))
    new = bench.take(1, "new")[0]
    assert (new.trial_id, new.token, new.epoch) == (old.trial_id, old.token + 1, 2)
    bench.check()
    assert ledger.cut_back(bench.database, new, 0)
    bench.check()
    bench.report(new, 1, 0.7)
    bench.check()
    bench.end(new, TrialState.PRUNED, 0.7)
    bench.check()


@pytest.mark.parametrize("pruner", ["asha", "hyperband", "median", "none"])
def test_a_long_history_in_any_order(storage_url: str, pruner: str) -> None:
    draw = random.Random(pruner)
    text = NINE_EPOCHS.replace('name = "asha"', f'name = "{pruner}"')
    with create(storage_url) as database, Bench(database, storage_url, text) as bench:
        held: list[tuple[Lease, int]] = []
        for step in range(120):
            kind = draw.choice(["take", "report", "report", "report", "report", "end", "release"])
            if kind == "take" or not held:
                leases = bench.take(2)
                bench.draw_up([lease for lease in leases if not lease.epoch and lease.token == 1])
                held += [(lease, lease.epoch) for lease in leases]
            elif kind == "report":
                draw.shuffle(held)
                lease, epoch = held.pop()
                bench.report(lease, epoch + 1, draw.choice([draw.random(), math.nan, math.inf]))
                held.append((lease, epoch + 1))
            elif kind == "end":
                state, value = draw.choice([(TrialState.COMPLETE, 0.5), (TrialState.PRUNED, None)])
                bench.end(held.pop()[0], state, value)
            else:
                lease, epoch = held.pop()
                ledger.release(database, [(lease, draw.randint(0, epoch))], "asked to stop")
            if step % draw.choice([1, 3, 10]) == 0:
                bench.check()
        bench.check()


def test_what_samplers_write_stays_in_the_view(bench: Bench) -> None:
    leases = bench.take(2)
    bench.view.sync()
    drawn = ask(bench.view, bench.spec, leases[1], 0, None)[0]
    assert drawn.params.keys() == bench.view.trial(leases[1].trial_id).params.keys()
    bench.study.optuna_study._storage.remove_session()
    assert bench.study.optuna_study.trials[1].params == {}
    bench.view.study._storage.set_trial_system_attr(leases[1].trial_id, "cma:generation", 3)  # as a sampler notes it
    bench.view.withdraw(leases[1].trial_id)
    assert not bench.view.trial(leases[1].trial_id).system_attrs
    assert bench.view.trial(leases[1].trial_id).params == {}


def test_a_deleted_study(bench: Bench) -> None:
    leases = bench.take(3)
    bench.draw_up(leases)
    bench.check()
    optuna.delete_study(study_name="s", storage=bench.database.storage)
    bench.view.sync()  # nothing to see, and no error: the next trial that is taken says that the study is gone
    assert ledger.report(bench.database, [Report(leases[0], 1, 0.5, MEASURED)], 60.0) == set()
    create_study(bench.database, bench.spec, "s")
    again = load_study(bench.database, "s")
    fresh = View(bench.database, again, bench.rungs)
    fresh.sync()
    assert [trial.state for trial in fresh.trials()] == [TrialState.WAITING]
    assert not next(iter(fresh.trials())).params


# Samplers and pruners on the view


def populate(bench: Bench, num_trials: int) -> None:
    """Finished trials of all kinds."""
    draw = random.Random(1)
    leases = bench.take(num_trials)
    view = View(bench.database, bench.study, bench.rungs)
    view.sync()
    drawn = [ask(view, bench.spec, lease, 0, None)[0] for lease in leases]  # nobody has learnt anything yet
    accepted, _ = ledger.set_up(bench.database, bench.study.study_id, drawn)
    assert len(accepted) == num_trials
    for lease in leases:
        for epoch in range(1, draw.randint(2, 5)):
            bench.report(lease, epoch, draw.random())
        state, value = draw.choice([(TrialState.COMPLETE, draw.random()), (TrialState.PRUNED, None)])
        bench.end(lease, state, value)


def sampler_study(name: str) -> str:
    if name == "grid":
        space = "batch_size = [16, 32, 64, 128]\nclip_norm = [0.0, 0.5, 1.0, 2.0]\noptimizer = ['sgd', 'adam']\n"
    else:
        space = NINE_EPOCHS.split("[space]")[1].split("[pruner]")[0]
    tail = '[pruner]\nname = "asha"\n[budget]\ntrials = 1000\n'
    return f"{NINE_EPOCHS.split('[space]')[0]}[space]\n{space}\n[sampler]\nname = '{name}'\n{tail}"


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_samplers_suggest_on_the_view_what_they_suggest_on_optunas_storage(storage_url: str, name: str) -> None:
    with create(storage_url) as database, Bench(database, storage_url, sampler_study(name)) as bench:
        populate(bench, 14)
        leases = bench.take(4)
        bench.view.sync()
        ours = [ask(bench.view, bench.spec, lease, 0, None)[0] for lease in leases]
        theirs = [on_optunas_storage(bench.study, bench.spec, lease) for lease in leases]
    for mine, params in zip(ours, theirs, strict=True):
        assert {n: kind.to_external_repr(value) for n, (value, kind) in mine.params.items()} == params
    assert len({str(params) for params in theirs}) == 4


def test_tpe_knows_all_that_it_drew_for_the_running_trials_of_others(storage_url: str) -> None:
    """Also what they did not need: parameters of another optimizer."""
    space = """
    optimizer = ["sgd", "adam"]
    momentum = { low = 0.5, high = 0.95, when = { optimizer = "sgd" } }
    weight_decay = { low = 1e-6, high = 1e-2, log = true, when = { optimizer = "adam" } }
    """
    text = f"{NINE_EPOCHS.split('[space]')[0]}[space]\n{space}\n[budget]\ntrials = 1000\n"
    with create(storage_url) as database, Bench(database, storage_url, text) as bench:
        populate(bench, 14)
        others = bench.take(8)
        bench.view.sync()  # taken, and not drawn up yet
        bench.draw_up(others)
        leases = bench.take(4)
        for view in (bench.view, View(database, bench.study, bench.rungs)):
            view.sync()
            seen = [view.trial(lease.trial_id) for lease in others]
            assert all(any(key.startswith("tpe:") for key in trial.system_attrs) for trial in seen)
        ours = [ask(bench.view, bench.spec, lease, 0, None)[0] for lease in leases]
        theirs = [on_optunas_storage(bench.study, bench.spec, lease) for lease in leases]
    for mine, params in zip(ours, theirs, strict=True):
        assert {n: kind.to_external_repr(value) for n, (value, kind) in mine.params.items()} == params


def on_optunas_storage(study: LoadedStudy, spec: StudySpec, lease: Lease) -> dict[str, Any]:
    """What the trial would train, had Optuna drawn it up by itself; it stays in the database, running."""
    study.optuna_study.sampler = make_sampler(spec, lease.number)
    study.optuna_study.get_trials(deepcopy=False)  # Optuna refuses a trial that it has not read yet
    return suggest(optuna.Trial(study.optuna_study, lease.trial_id), spec)


@pytest.mark.parametrize("pruner", ["asha", "hyperband"])
def test_decisions_of_a_batch_do_not_depend_on_the_order(bench: Bench, pruner: str) -> None:
    spec = parse(NINE_EPOCHS.replace('name = "asha"', f'name = "{pruner}"'), "test.toml")
    decider, ranks = make_pruner(spec), list(range(64))
    leases = bench.take(64)
    stopped: dict[str, set[int]] = {}
    for order in ("ascending", "descending", "shuffled"):
        random.Random(3).shuffle(ranks) if order == "shuffled" else ranks.sort(reverse=order == "descending")
        by_rank = {rank: leases[rank] for rank in ranks}  # a trial keeps its value; only the order of reports differs
        view = View(bench.database, bench.study, rungs(decider))
        for rank, lease in by_rank.items():
            bench.report(lease, 1, rank / 64)
        view.sync()
        trials = [view.trial(lease.trial_id) for lease in by_rank.values()]
        stopped[order] = failing(decider, view.study, trials)
        assert stopped[order] == {trial.number for trial in trials if decider.prune(view.study, trial)}
    assert stopped["ascending"] == stopped["descending"] == stopped["shuffled"]
    passing = {lease.number for lease in leases} - stopped["shuffled"]
    if pruner == "asha":
        assert passing == {lease.number for lease in leases[-22:]}  # the best third, rounded up
    else:
        assert 0 < len(stopped["shuffled"]) < 64 - 22  # only one bracket has a rung at epoch 1
