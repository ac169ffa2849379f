"""Resuming is invisible: killed after every epoch, each kind of trial gives the values of an undisturbed one."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update

from hpsearch.events import EpochDone
from hpsearch.interrupt import Interruption
from hpsearch.models import MODELS
from hpsearch.settings import Settings
from hpsearch.spec import StudySpec, parse
from hpsearch.storage import ledger
from hpsearch.storage.open import Database, create
from hpsearch.storage.studies import create_study, load_study
from hpsearch.storage.tables import LEASES
from hpsearch.train import OPTIMIZERS, SCHEDULES
from hpsearch.worker import run

EPOCHS = 4


def one_trial(model: str, optimizer: str, scheduler: str) -> StudySpec:
    """A study of one seed, with dropout where there is some, clipping, weight decay and augmentation."""
    peak = "peak_learning_rate = 0.02" if scheduler == "onecycle" else ""
    return parse(
        f"""
name = "one"
seeds = [5]
[model]
name = "{model}"
[data]
name = "digits:0-3"
image_size = 16
[training]
epochs = {EPOCHS}
optimizer = "{optimizer}"
scheduler = "{scheduler}"
learning_rate = 0.01
{peak}
batch_size = 100
hidden_width = 12
dropout = 0.25
weight_decay = 1e-3
clip_norm = 1.0
augmentation = "crop-flip"
""",
        "one.toml",
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings under which every epoch is kept."""
    return Settings(storage_url="", home=tmp_path, data_dir=None, device="cpu", checkpoint_seconds=0.0)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """An empty open database."""
    with create(f"sqlite:///{tmp_path / 'study.db'}") as database:
        yield database


def curve(database: Database, name: str) -> list[dict[str, object]]:
    """Every metric of every epoch of the study's trial, but for the speed."""
    (trial,) = load_study(database, name).optuna_study.trials
    rows = ledger.epochs(database, trial._trial_id)
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]


@pytest.mark.parametrize("scheduler", sorted(SCHEDULES))
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("model", sorted(MODELS))
def test_killed_after_every_epoch(
    database: Database, settings: Settings, model: str, optimizer: str, scheduler: str
) -> None:
    spec = one_trial(model, optimizer, scheduler)
    create_study(database, spec, "undisturbed")
    list(run(database, "undisturbed", replace(settings, home=settings.home / "other"), Interruption()))
    create_study(database, spec, "killed")
    for epoch in range(1, EPOCHS):
        events = run(database, "killed", settings, Interruption())
        reached = next(event for event in events if isinstance(event, EpochDone))
        assert reached.epoch == epoch
        next(events, None)  # on to the checkpoint, and into the next epoch
        with database.engine.begin() as connection:
            connection.execute(update(LEASES).values(expires=0.0, token=LEASES.c.token + 1))  # it can write no more
        events.close()  # type: ignore[attr-defined]
    list(run(database, "killed", settings, Interruption()))
    assert len(curve(database, "killed")) == EPOCHS
    assert curve(database, "killed") == curve(database, "undisturbed")
