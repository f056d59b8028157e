"""Every behaviour, on every registered backend that can work here. On the kernel's, tests/uml runs them where not."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from cowfs.errors import MissingRequirement
from cowfs.pool import Backend, backend_names, load_backend
from cowfs.testing.conformance import BEHAVIOURS, Behaviour, check
from cowfs.uml import find_kernel

ALL = [load_backend(name) for name in backend_names()]
HERE = [backend for backend in ALL if backend.probe().usable]


def _has_guests() -> bool:
    try:
        find_kernel()
    except MissingRequirement:
        return False
    return True


NOWHERE = [] if _has_guests() else [backend for backend in ALL if backend not in HERE]


@pytest.mark.parametrize(
    ("backend", "behaviour"),
    [
        pytest.param(backend, behaviour, id=f"{backend.name}-{behaviour.id}")
        for backend in HERE
        for behaviour in BEHAVIOURS
        if not behaviour.why_not(backend)
    ],
)
def test_behaviour(backend: Backend, behaviour: Behaviour, tmp_path: Path, counted: Callable[[str, str], None]) -> None:
    counted(backend.name, backend.name)
    try:
        check(behaviour, backend, os.fspath(tmp_path))
    except MissingRequirement as reason:
        pytest.skip(str(reason))


if NOWHERE:

    @pytest.mark.parametrize("backend", NOWHERE, ids=lambda backend: backend.name)
    def test_backend_that_can_work_nowhere(backend: Backend) -> None:
        probe = backend.probe()
        pytest.skip(
            f"backend '{backend.name}' cannot work here ({probe.problem}; try: {probe.remedy}), nor in a guest: "
            "User-Mode Linux is missing; try: cowfs uml install"
        )


def test_every_behaviour_is_for_some_backend() -> None:
    nobodys = [behaviour.id for behaviour in BEHAVIOURS if all(behaviour.why_not(backend) for backend in ALL)]
    assert nobodys == []


# Of device-mapper-test-suite and dmtest-python: what needs neither special hardware nor a file system.
CASES_OF_THE_KERNELS_SUITES = """
    lots-of-empty-thins lots-of-empty-snaps lots-of-recursive-snaps activate-thin-while-pool-suspended-fails
    huge-block-size non-power-of-2-block-size-fails too-small-block-size-fails too-large-block-size-fails
    largest-block-size-succeeds thin-id-out-of-range-fails largest-thin-id-succeeds too-small-a-metadata-dev-fails

    create-delete-cycle create-many-then-delete-many rolling-create-delete delete-provisioned-thin
    delete-unknown-id-fails delete-active-id-fails delete-after-out-of-space

    discard-with-and-without-passdown discard-granularity-is-the-block-size discard-disabled-fails discard-empty-device
    discard-fully-provisioned-device discard-fragmented discard-single-block discard-shared-block
    discard-previously-shared discard-previously-shared-block-is-passed-down discard-partial-blocks discard-same-blocks
    discard-with-background-io change-discard-with-reload-fails discard-origin-leaves-snapshot
    discard-past-the-end-fails discard-triggers-commit discard-random-sectors discard-after-out-of-space

    snapshot-space-use many-snapshots-of-same-volume parallel-io-to-shared-thins ref-count-tree pattern-stomper
    many-snaps-with-changes try-and-create-duplicates external-origin-sizes

    filling-pool-or-thin-returns-enospc out-of-space-errors-immediately-if-requested out-of-space-times-out
    resize-after-out-of-space-error-mode resize-after-out-of-space-with-held-io resize-after-out-of-space-timeout
    resize-after-out-of-space-with-preloaded-table io-to-provisioned-region-after-out-of-space resize-in-steps
    resize-without-io data-smaller-than-pool-fails-on-load data-smaller-than-pool-fails-on-reload
    extra-data-space-is-not-used extra-data-space-is-not-used-after-reload reload-with-io

    metadata-resize-in-steps metadata-resize-with-check-between metadata-resize-with-io metadata-resize-after-exhaustion
    exhausting-metadata-makes-read-only thin-remove-works-after-metadata-resize

    commit-failure-sets-needs-check commit-failure-falls-back needs-check-survives-reactivation-until-cleared
    metadata-on-an-error-target read-only-pool read-only-pool-is-not-formatted abort-on-fresh-pool
    abort-on-provisioned-thin abort-during-io

    hold-release-cycle metadata-snapshot-cannot-be-held-or-released-twice
    metadata-snapshot-differs-from-live-after-overwrite transaction-id flush-triggers-commit
    pool-without-activity-does-not-commit two-pools two-pools-on-one-metadata-fail stacked-pools
"""


def test_cases_of_the_kernels_suites_are_there() -> None:
    ours = Counter(original for behaviour in BEHAVIOURS for original in behaviour.originals)
    wanted = CASES_OF_THE_KERNELS_SUITES.split()
    assert sorted(set(wanted) - set(ours)) == []
    assert [name for name, count in ours.items() if count > 1] == []
