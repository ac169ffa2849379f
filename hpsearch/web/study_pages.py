"""What the pages Studies, Study, Trials, Best and Workers say: plain values for their templates, and figures."""

import shlex
from typing import Any

from hpsearch.errors import StorageError
from hpsearch.storage import budget, fleet
from hpsearch.storage.events import events
from hpsearch.storage.studies import LoadedStudy, progress
from hpsearch.web import evidence, figures, queries, standing
from hpsearch.web.queries import Listed, TrialRow
from hpsearch.web.source import Source, rungs_of

PAGE_SIZE = 50  # trials of one page of the table
TOP = 5  # configurations of the page Best
SORTS = {
    "number": lambda trial: trial.number,
    "epoch": lambda trial: trial.epoch,
    "seconds": lambda trial: trial.seconds,
    "state": lambda trial: trial.state,
}

Context = dict[str, Any]


def all_studies(source: Source) -> Context:
    """Studies: one row for each."""
    workers = fleet.workers(source.database)
    everything = source.listed()
    rows = [_row(source, listed, everything, workers) for listed in everything]
    return {"rows": rows, "num_workers": sum(worker.alive for worker in workers)}


def _row(source: Source, listed: Listed, everything: list[Listed], workers: list[fleet.WorkerRow]) -> Context:
    """One study; one that is damaged, or deleted meanwhile, has a sentence and hides no other."""
    try:
        study = source.load(listed)
        if study is None:
            return {"listed": listed}
        confirmed = evidence.confirmation(source, everything, study)
        return _study_row(source, listed, study, workers) | {"confirmed": confirmed}
    except StorageError as error:
        return {"listed": listed, "problem": str(error)}
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # what is recorded is something else
        return {"listed": listed, "problem": f"its records are damaged ({type(error).__name__}: {error})"}


def _study_row(source: Source, listed: Listed, study: LoadedStudy, workers: list[fleet.WorkerRow]) -> Context:
    now = progress(source.database, study)
    with source.database.engine.connect() as connection:
        trials = queries.trials(connection, listed.study_id)
        hours = queries.hours_since_start(connection, listed.study_id)
    return {
        "listed": listed,
        "study": study,
        "now": now,
        "state": now.word,
        "seconds_left": standing.seconds_left(study.spec.budget, trials, now, hours),
        "workers": sum(worker.alive for worker in workers if worker.study_id == listed.study_id),
        "event": next(iter(events(source.database, listed.study_id, last=1)), None),
    }


def one_study(source: Source, listed: Listed, study: LoadedStudy, with_figures: bool) -> tuple[Context, Context]:
    """Study: the values of its parts, and its figures."""
    now = progress(source.database, study)
    name = study.spec.objective.metric
    with source.database.engine.connect() as connection:
        trials = queries.trials(connection, listed.study_id)
        running = [trial for trial in trials if trial.state == "RUNNING"]
        last = queries.last_epochs(connection, [trial.trial_id for trial in running])
        hours = queries.hours_since_start(connection, listed.study_id)
    ranking = figures.ranked(trials, study.spec.objective.maximize)
    mattering = source.importances(listed, study, now.complete) if study.spec.space else None
    num_with_epochs = sum(trial.epoch > 0 for trial in trials)
    context = {
        "listed": listed,
        "study": study,
        "now": now,
        "state": now.word,
        "metric": name,
        "seconds_left": standing.seconds_left(study.spec.budget, trials, now, hours),
        "limits": standing.limits(study, now, trials, hours),
        "running": [(trial, last.get(trial.trial_id, {})) for trial in running],
        "workers": fleet.workers(source.database, listed.study_id),
        "events": events(source.database, listed.study_id, last=15),
        "top": ranking[:TOP],
        "importances": mattering,
        "num_drawn": min(num_with_epochs, figures.MAX_CURVES),
        "num_with_epochs": num_with_epochs,
        "rungs": sorted(rungs_of(study)),
    }
    return context, _study_figures(source, study, trials, mattering) if with_figures else {}


def _study_figures(source: Source, study: LoadedStudy, trials: list[TrialRow], mattering: Any) -> Context:
    name, maximize = study.spec.objective.metric, study.spec.objective.maximize
    drawn, best = figures.chosen(trials, maximize)
    ids = [trial.trial_id for trial in drawn]
    with source.database.engine.connect() as connection:
        values = queries.epochs(connection, ids, figures.CURVES)
        recipes = queries.recipes(connection, ids, study.spec.space) if study.spec.space else {}
    made = {"history": figures.history(trials, name, maximize)}
    for column, metric in enumerate(figures.CURVES, start=1):
        made[metric] = figures.curves(drawn, best, values, column, metric)
    if rungs := rungs_of(study):
        made["rungs"] = figures.rungs(trials, rungs, study.spec.max_epochs)
    if mattering is not None and mattering.shares:
        made["importances"] = figures.importances(mattering.shares)
    if study.spec.space:
        made["parallel"] = figures.parallel(drawn, recipes, study.spec.space, name, maximize)
    return made


def trials_table(source: Source, listed: Listed, study: LoadedStudy, sort: str, page: int) -> Context:
    """Trials: one page of the table, in the order asked for; a leading minus turns it round."""
    with source.database.engine.connect() as connection:
        trials = queries.trials(connection, listed.study_id)
        ordered = _ordered(trials, sort, study.spec.objective.maximize)
        num_pages = max(1, -(-len(trials) // PAGE_SIZE))
        page = min(max(1, page), num_pages)
        shown = ordered[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
        ids = [trial.trial_id for trial in shown]
        recipes, endings = queries.recipes(connection, ids, study.spec.space), queries.endings(connection, ids)
    rows = [(trial, recipes.get(trial.trial_id, {}), endings.get(trial.trial_id, ("", ""))[0]) for trial in shown]
    return {
        "listed": listed,
        "study": study,
        "metric": study.spec.objective.metric,
        "rows": rows,
        "names": list(study.spec.space) or ["seed"],
        "sort": sort,
        "maximize": study.spec.objective.maximize,
        "page": page,
        "num_pages": num_pages,
        "num_trials": len(trials),
    }


def best_of(source: Source, listed: Listed, study: LoadedStudy) -> Context:
    """Best: the best configurations side by side, and what to do with them."""
    with source.database.engine.connect() as connection:
        trials = queries.trials(connection, listed.study_id)
        top = figures.ranked(trials, study.spec.objective.maximize)[:TOP]
        ids = [trial.trial_id for trial in top]
        recipes, last = queries.recipes(connection, ids, study.spec.space), queries.last_epochs(connection, ids)
    now, folder = progress(source.database, study), evidence.export_folder(source.home, study)
    return {
        "listed": listed,
        "study": study,
        "metric": study.spec.objective.metric,
        "now": now,
        "top": [(trial, recipes.get(trial.trial_id, {}), last.get(trial.trial_id, {})) for trial in top],
        "names": [
            name for name in study.spec.space if any(recipes[i].get(name) is not None for i in ids if i in recipes)
        ],
        "importances": source.importances(listed, study, now.complete) if study.spec.space else None,
        "confirmed": evidence.confirmation(source, source.listed(), study),
        "tested": evidence.tested(source, study),
        "final_test_of": evidence.final_test_of(study),
        "export_folder": shlex.quote(str(folder)),
        "export_size": evidence.export_size(folder, study),
    }


def all_workers(source: Source) -> Context:
    """Workers: all of them, by study."""
    workers = fleet.workers(source.database)
    studies = [listed for listed in source.listed() if listed.created]
    states = {one.study_id: worker.wanted for one in studies for worker in workers if worker.study_id == one.study_id}
    alive = [worker for worker in workers if worker.alive]
    return {
        "workers": workers,
        "speed": sum(worker.speed for worker in workers if worker.state == "training"),
        "num_alive": len(alive),
        "controllable": [one for one in studies if one.study_id in states],
        "wishes": {one.name: states[one.study_id] for one in studies if one.study_id in states},
    }


def may_be(state: str) -> bool:
    """Whether people may want this of a study."""
    return state in (budget.RUNNING, budget.PAUSED, budget.STOPPED)


def _ordered(trials: list[TrialRow], sort: str, maximize: bool) -> list[TrialRow]:
    key, turned = sort.removeprefix("-"), sort.startswith("-")
    if key != "value":
        return sorted(trials, key=SORTS.get(key, SORTS["number"]), reverse=turned)
    sign = -1.0 if maximize != turned else 1.0
    without = [trial for trial in trials if trial.value is None]
    valued = [trial for trial in trials if trial.value is not None]
    complete_first = sorted(valued, key=lambda t: (t.state != "COMPLETE", sign * (t.value or 0.0)))
    return [*complete_first, *without]
