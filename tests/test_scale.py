"""The scale benchmark on two workers for two seconds, so that it goes on working; directly and behind a pooler."""

import pytest

from benchmarks.scale import line, measure
from tests.pgbouncer import MISSING, binary
from tests.postgres import PostgresServer

BEHIND = pytest.param(False, marks=pytest.mark.skipif(binary() is None, reason=MISSING), id="pooler")


@pytest.mark.parametrize("direct", [pytest.param(True, id="direct"), BEHIND])
def test_two_workers_report(postgres: PostgresServer, direct: bool) -> None:
    row = measure(postgres, 2, 2.0, direct=direct, lanes=2)
    assert 0.5 <= row.reports_per_second <= 2.5
    assert 0.0 < row.median < 60.0
    assert row.faults == 0
    assert 1 <= row.connections <= 2
    assert row.rates.transactions >= 1
    assert line(row)
