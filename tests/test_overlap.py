"""The benchmark of overlap with four lanes and short epochs, so that it goes on working; and what it claims."""

from benchmarks.overlap import Waiting, delayed, measure
from hpsearch.storage.open import create
from hpsearch.training import Training
from tests.postgres import PostgresServer


def test_training_waits_less_if_epochs_are_recorded_meanwhile(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    create(url).close()
    with delayed(url, 0.02) as way:
        without, with_overlap = (measure(way, "none", side, 8, 0.5, 4) for side in (Waiting, Training))
    assert without.trials == with_overlap.trials == 4
    assert without.waited > 0.03  # one journey of 20 ms for an epoch of 0.5 s
    assert with_overlap.waited < without.waited / 2


def test_trials_are_replaced_at_rungs(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    create(url).close()
    assert measure(url, "asha", Training, 4, 0.01, 4).trials > 4
