"""The store after a power cut at any moment: what was promised is there, whatever the disk or the file system lost."""

from __future__ import annotations

import pytest
from store import Store

from cowfs.pytest_plugin import CowCrashes


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("ext4", marks=pytest.mark.cow_crashes(states=60)),
        pytest.param("posix", marks=pytest.mark.cow_crashes(states=60, model="posix")),
    ],
)
def test_nothing_that_was_promised_is_lost(cow_crashes: CowCrashes, model: str) -> None:
    with cow_crashes.record() as path, Store(path) as store:
        for number in range(1, 4):
            store.put("k", number)
            cow_crashes.mark(f"k={number}")
            store.compact()
    for state in cow_crashes.states():
        with state.opened() as path, Store(path) as store:
            found = store.get("k")
            assert found is None or isinstance(found, int), model
            promised = len(state.marks)
            assert (found or 0) >= promised
