"""The cases of moby's devicemapper driver itself, and of the integration tests of its daemon."""

from __future__ import annotations

import os
import subprocess
from typing import Final

from cowfs.errors import UsageError
from cowfs.testing.cases import NotApplicableError
from cowfs.testing.conformance.lab import expect_equal
from cowfs.testing.layers.lab import MIB, LayerLab, content
from cowfs.testing.layers.registry import case
from cowfs.units import format_decimal_size

_OTHER_PROGRAM_SECONDS: Final = 30.0


def expect_refusal(text: str, lab: LayerLab, *options: str) -> None:
    """A start with these options must fail with these words."""
    try:
        lab.restart(*options)
    except UsageError as error:
        expect_equal(text in str(error), True, f"'{text}' in '{error}'")
    else:
        raise AssertionError(f"a home opened with {' '.join(options)}")


@case("devicemapper-1", "Teardown")
def a_home_goes_down_and_comes_up_again(lab: LayerLab) -> None:
    lab.layer("a", None, {"file": b"kept"})
    lab.driver.cleanup()
    lab.driver.cleanup()
    lab.restart()
    expect_equal(lab.read("a", "file"), b"kept", "content after a restart")


@case("devicemapper-2", "ReduceLoopBackSize")
def pool_files_do_not_shrink(lab: LayerLab) -> None:
    lab.use_options("dm.loopdatasize=300M", "dm.loopmetadatasize=200M")
    lab.layer("a", None, {"file": content(1, MIB)})
    lab.restart("dm.loopdatasize=290M", "dm.loopmetadatasize=190M")
    _expect_totals(lab, 300, 200)
    expect_equal(lab.read("a", "file"), content(1, MIB), "content")


@case("devicemapper-3", "IncreaseLoopBackSize")
def pool_files_grow(lab: LayerLab) -> None:
    lab.use_options("dm.loopdatasize=300M", "dm.loopmetadatasize=200M")
    lab.layer("a", None, {"file": content(1, MIB)})
    _expect_totals(lab, 300, 200)
    lab.restart("dm.loopdatasize=310M", "dm.loopmetadatasize=210M")
    _expect_totals(lab, 310, 210)
    expect_equal(lab.read("a", "file"), content(1, MIB), "content")
    lab.restart()
    _expect_totals(lab, 1024, 210)


def _expect_totals(lab: LayerLab, data_mib: int, metadata_mib: int) -> None:
    status = lab.status()
    expect_equal(status["Data Space Total"], format_decimal_size(data_mib * MIB), "data space")
    expect_equal(status["Metadata Space Total"], format_decimal_size(metadata_mib * MIB), "metadata space")


@case("devicemapper-4", "MountLeaks", needs_paths=True)
def a_mount_that_leaked_elsewhere_keeps_no_layer(lab: LayerLab) -> None:
    """A process with mounts of its own still has the layer's when it is put."""
    lab.use_options("dm.use_deferred_removal=false", "dm.use_deferred_deletion=false")
    lab.layer("leaked", None, {"file": b"there"})
    path = lab.path("leaked")
    if os.geteuid() != 0:
        lab.driver.put("leaked")
        raise NotApplicableError("mounts of one's own take root")
    script = 'cat "$0"/file; echo; exec cat'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdout.readline()
        try:
            lab.driver.put("leaked")
            lab.driver.remove("leaked")
        finally:
            other.stdin.close()
            other.wait(_OTHER_PROGRAM_SECONDS)
    expect_equal(lab.driver.exists("leaked"), False, "exists")


@case("devicemapper-5")
def a_base_device_does_not_shrink(lab: LayerLab) -> None:
    lab.layer("a")
    expect_refusal(
        f"devmapper: Base device size cannot be smaller than {format_decimal_size(48 * MIB)}", lab, "dm.basesize=47M"
    )
    lab.restart()
    expect_equal(lab.driver.list_layers(), ["a"], "layers")


@case("devicemapper-6")
def a_base_device_grows_and_layers_that_are_there_stay(lab: LayerLab) -> None:
    lab.use_options("dm.basesize=16M")
    lab.layer("before", None, {"file": b"kept"})
    lab.restart("dm.basesize=32M")
    expect_equal(lab.status()["Base Device Size"], format_decimal_size(32 * MIB), "the size of the base device")
    large = content(1, 18 * MIB)
    lab.layer("after", None, {"large": large})
    sizes = [int(lab.driver.metadata(layer_id)["DeviceSize"]) for layer_id in ("before", "after")]
    expect_equal(sizes, [16 * MIB, 32 * MIB], "the sizes of the layers")
    expect_equal(lab.read("before", "file"), b"kept", "content")
    lab.restart("dm.basesize=32M")
    expect_equal(lab.read("after", "large"), large, "content of the larger one")


@case("devicemapper-7")
def a_layer_may_be_larger_than_its_parent(lab: LayerLab) -> None:
    lab.layer("parent", None, {"file": b"kept"})
    lab.create("large", "parent", {"size": "12G"})
    expect_equal(int(lab.driver.metadata("large")["DeviceSize"]), 12 << 30, "its size")
    expect_equal(lab.read("large", "file"), b"kept", "content")
    expect_equal(lab.changes("large", "parent"), [], "changes")


@case("devicemapper-8")
def a_layer_may_not_be_smaller_than_its_parent(lab: LayerLab) -> None:
    lab.layer("parent")
    for parent in ("parent", None):
        try:
            lab.create("small", parent, {"size": "5M"})
        except UsageError as error:
            expect_equal("Container size cannot be smaller than" in str(error), True, f"the words in '{error}'")
        else:
            raise AssertionError("a layer smaller than its parent was made")
    expect_equal(lab.driver.list_layers(), ["parent"], "layers")


@case("devicemapper-9")
def metadata_are_numbers_and_ids_differ(lab: LayerLab) -> None:
    lab.layer("image")
    lab.create("container", "image")
    found = [lab.driver.metadata(layer_id) for layer_id in ("image", "container")]
    for metadata in found:
        expect_equal(set(metadata), {"DeviceId", "DeviceName", "DeviceSize"}, "names")
        expect_equal(int(metadata["DeviceSize"]), 48 * MIB, "size")
    expect_equal(int(found[0]["DeviceId"]) == int(found[1]["DeviceId"]), False, "the ids are the same")
    expect_equal(found[0]["DeviceName"].endswith("-image"), True, "the name of the device ends in the layer's")


@case("devicemapper-10")
def a_layer_whose_thin_is_gone_can_be_removed(lab: LayerLab) -> None:
    lab.layer("gone")
    lab.layer("other", None, {"file": b"kept"})
    lab.home.message(f"delete {lab.driver.metadata('gone')['DeviceId']}")
    lab.driver.remove("gone")
    expect_equal(lab.driver.list_layers(), ["other"], "layers")
    lab.layer("gone", None, {"file": b"new"})
    expect_equal((lab.read("gone", "file"), lab.read("other", "file")), (b"new", b"kept"), "contents")


@case("devicemapper-11", "LockReleasedDeviceDeletion")
def a_search_for_nothing_to_delete_holds_nothing(lab: LayerLab) -> None:
    lab.layer("kept", None, {"file": b"kept"})
    for _ in range(2):
        expect_equal(lab.home.retry_deletions(), 0, "what is left to delete")
    lab.layer("child", "kept", {"more": b"made"})
    lab.restart()
    expect_equal(sorted(lab.tree("child")), ["file", "more"], "paths after a restart")
