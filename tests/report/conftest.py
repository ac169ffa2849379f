"""The whole chain, which the tests of the page only read."""

import pytest

from hpsearch import transfer
from hpsearch.export import export
from hpsearch.final_test import final_test
from hpsearch.storage.open import create
from tests.chain import make, silent


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """The whole chain: searched, confirmed, tested, exported, carried over."""
    folder = tmp_path_factory.mktemp("whole")
    with create(f"sqlite:///{folder / 'study.db'}") as database:
        chain = make(database, folder)
        final_test(database, chain.search, chain.settings, None, silent)
        export(database, chain.search, 1, folder / "out", chain.settings, silent)
        plans = [transfer.plan(folder / "out", "digits:5-9", size, 2, 1, chain.settings) for size in (16, 24)]
        for study in transfer.create(database, plans, chain.settings):
            chain.work(study.name)
        yield chain
