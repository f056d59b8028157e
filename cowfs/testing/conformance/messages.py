"""Section 1.3: messages to the pool and their errno."""

from __future__ import annotations

import errno

from cowfs.testing.conformance.lab import Lab, expect_equal, expect_error, fill, status_of, used
from cowfs.testing.conformance.registry import behaviour
from cowfs.thinmeta import Metadata


@behaviour("1.3-1")
def create_thin_refuses_used_ids_and_bad_numbers(lab: Lab) -> None:
    pool = lab.pool()
    pool.message("create_thin 0")
    expect_error(errno.EEXIST, lambda: pool.message("create_thin 0"))
    _expect_invalid(lab, "create_thin", ["", "16777216", "-1", "0x1", "a", "1 2", "1.0"])


@behaviour("1.3-2")
def create_snap_looks_at_the_new_id_first(lab: Lab) -> None:
    pool = lab.pool()
    pool.message("create_thin 0")
    expect_error(errno.EEXIST, lambda: pool.message("create_snap 0 0"))
    expect_error(errno.EEXIST, lambda: pool.message("create_snap 0 9"))
    expect_error(errno.ENODATA, lambda: pool.message("create_snap 1 9"))
    pool.message("create_snap 1 0")
    expect_equal(pool.thin_ids(), [0, 1], "ids")
    _expect_invalid(lab, "create_snap", ["", "1", "1 2 3", "a 0", "16777216 0", "1 16777216"])


@behaviour("1.3-3", "delete-unknown-id-fails", "delete-active-id-fails")
def delete_refuses_unknown_and_active_ids(lab: Lab) -> None:
    pool = lab.pool()
    thin = lab.thin(pool, 3)
    expect_error(errno.ENODATA, lambda: pool.message("delete 4"))
    expect_error(errno.EBUSY, lambda: pool.message("delete 3"))
    thin.close()
    pool.message("delete 3")
    expect_error(errno.ENODATA, lambda: pool.message("delete 3"))
    _expect_invalid(lab, "delete", ["", "x", "1 2", "16777216"])


@behaviour("1.3-4")
def set_transaction_id_takes_any_u64(lab: Lab) -> None:
    pool = lab.pool()
    pool.message("set_transaction_id 0 18446744073709551615")
    expect_error(errno.EINVAL, lambda: pool.message("set_transaction_id 0 1"))
    pool.message("set_transaction_id 18446744073709551615 0")
    expect_equal(status_of(pool).transaction_id, 0, "transaction id")
    _expect_invalid(lab, "set_transaction_id", ["", "0", "0 1 2", "0 18446744073709551616", "0 -1", "x 1"])


@behaviour("1.3-5", "metadata-snapshot-cannot-be-held-or-released-twice")
def a_metadata_snapshot_is_held_once_and_released_once(lab: Lab) -> None:
    pool = lab.pool()
    expect_equal(status_of(pool).held_root, None, "held root at the begin")
    expect_error(errno.EINVAL, lambda: pool.message("release_metadata_snap"))
    pool.message("reserve_metadata_snap")
    if status_of(pool).held_root is None:
        raise AssertionError("the status shows no held root")
    expect_error(errno.EBUSY, lambda: pool.message("reserve_metadata_snap"))
    pool.message("release_metadata_snap")
    expect_error(errno.EINVAL, lambda: pool.message("release_metadata_snap"))
    expect_equal(status_of(pool).held_root, None, "held root at the end")
    _expect_invalid(lab, "reserve_metadata_snap", ["1"])
    _expect_invalid(lab, "release_metadata_snap", ["1"])


@behaviour("1.3-6")
def names_are_case_insensitive_and_numbers_decimal(lab: Lab) -> None:
    pool = lab.pool()
    pool.message("CREATE_thin +7")
    pool.message("create_Snap 0008 7")
    expect_equal(pool.thin_ids(), [7, 8], "ids")
    pool.message("Delete 007")
    expect_equal(pool.thin_ids(), [8], "ids")


@behaviour("1.3-7")
def other_messages_are_invalid(lab: Lab) -> None:
    pool = lab.pool()
    for text in ("nonsense", "create 1", "create_thin1", "set_mode read-only", "trim 1 2 3"):
        expect_error(errno.EINVAL, pool.message, text)
    expect_equal(pool.thin_ids(), [], "ids")


@behaviour("1.3-8")
def messages_work_while_the_pool_is_suspended(lab: Lab) -> None:
    pool = lab.pool()
    pool.create_thin(0)
    pool.suspend()
    pool.create_thin(1)
    pool.create_snap(2, 0)
    pool.delete(0)
    pool.set_transaction_id(0, 5)
    pool.resume()
    expect_equal(pool.thin_ids(), [1, 2], "ids")
    expect_equal(status_of(lab.reopen(pool)).transaction_id, 5, "transaction id")


@behaviour("1.3-9")
def messages_are_served_when_the_pool_is_out_of_data_space(lab: Lab) -> None:
    pool, thin = lab.pool_with_thin(4, data_blocks=4, error_if_no_space=True)
    expect_error(errno.ENOSPC, lambda: fill(thin, 4, 1, 1))
    pool.create_thin(1)
    pool.create_snap(2, 0)
    pool.set_transaction_id(0, 1)
    expect_equal(pool.thin_ids(), [0, 1, 2], "ids")
    expect_equal(used(pool), 4, "used data blocks")


@behaviour("1.3-10")
def a_message_that_fails_changes_nothing(lab: Lab) -> None:
    pool = lab.pool()
    fill(lab.thin(pool, 1), 0, 4, 1)
    before = (status_of(pool), pool.thin_ids())
    for text, number in (
        ("create_thin 1", errno.EEXIST),
        ("create_snap 1 1", errno.EEXIST),
        ("create_snap 2 3", errno.ENODATA),
        ("delete 1", errno.EBUSY),
        ("delete 9", errno.ENODATA),
        ("set_transaction_id 5 6", errno.EINVAL),
        ("release_metadata_snap", errno.EINVAL),
    ):
        expect_error(number, pool.message, text)
    expect_equal((status_of(pool), pool.thin_ids()), before, "status and ids")


@behaviour("1.3-11")
def a_message_is_durable_when_it_returns(lab: Lab) -> None:
    """Seen in the metadata that readers get, without any commit of ours."""
    pool, _thin = lab.pool_with_thin(2)
    pool.create_thin(5)
    device = pool.open_metadata()
    try:
        metadata = Metadata.open(device, read_only=True)
        expect_equal(metadata.thin_ids(), [0, 5], "committed ids")
        expect_equal(metadata.open_thin(0).mapped_blocks, 2, "committed mapped blocks")
        metadata.close()
    finally:
        device.close()


def _expect_invalid(lab: Lab, name: str, arguments: list[str]) -> None:
    pool = lab.pool()
    for words in arguments:
        text = f"{name} {words}".strip()
        expect_error(errno.EINVAL, pool.message, text)
    expect_equal(pool.thin_ids(), [], "ids")
