"""A short soak: random plans of faults against a mounted home under load; `tests.faults.soak` takes longer."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.faults.soak import Soak, random_rule

LONG = os.environ.get("COWFS_TEST_LONG") == "1"


@pytest.mark.fuse
@pytest.mark.slow
def test_random_plans_leave_a_clean_home(tmp_path: Path, rng: random.Random, needs_fuse: None) -> None:
    soak = Soak(tmp_path, rng.randrange(1 << 32))
    for _ in range(60 if LONG else 2):
        soak.round(2.0 if LONG else 1.0)
    assert soak.operations > soak.failed


def test_the_rules_of_a_seed_are_the_same_each_time() -> None:
    some, others = (list(map(random_rule, [random.Random(seed) for seed in range(200)])) for _ in range(2))
    assert some == others
    assert {rule.on for rule in some} == {"files", "device", "data", "metadata", "commit"}
