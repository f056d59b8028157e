"""What containers/storage adds to the generic suite."""

from __future__ import annotations

from typing import Final

from cowfs.testing.conformance.lab import expect_equal
from cowfs.testing.layers.lab import LayerLab, content
from cowfs.testing.layers.registry import case

_COMPONENTS: Final = 10


@case("store-1", "CreateFromTemplate")
def a_layer_made_from_another_has_the_same_changes(lab: LayerLab) -> None:
    lab.layer("parent", None, {"kept": content(1, 1000), "removed": content(2, 1000), "changed": content(3, 1000)})
    lab.create("template", "parent")
    with lab.files("template") as files:
        files.write("added", content(4, 1000))
        files.write("changed", content(5, 2000))
        files.remove("removed")
    expected = ["A /added", "C /changed", "D /removed"]
    expect_equal(lab.changes("template", "parent"), expected, "changes of the template")
    for layer_id in ("first", "second"):
        lab.create(layer_id, "template")
        expect_equal(lab.changes(layer_id, "template"), [], f"changes of '{layer_id}' against the template")
        expect_equal(lab.changes(layer_id, "parent"), expected, f"changes of '{layer_id}' against the parent")
        expect_equal(lab.diff_size(layer_id, "parent"), lab.diff_size("template", "parent"), "the size of the diff")
        expect_equal(lab.tree(layer_id), lab.tree("template"), f"the tree of '{layer_id}'")


@case("store-2", "Echo")
def what_is_deleted_at_any_depth_and_made_again_is_told(lab: LayerLab) -> None:
    paths = ["/".join(f"subdir{number}" for number in range(1, depth + 1)) for depth in range(1, _COMPONENTS)]
    paths.append(f"{paths[-1]}/file")
    for depth in range(_COMPONENTS):
        base, second, third = (f"{name}-{depth}" for name in ("base", "second", "third"))
        above = [f"C /{path}" for path in paths[:depth]]
        lab.create(base)
        _make(lab, base, paths, depth)
        expect_equal(lab.changes(base, None), [f"A /{path}" for path in paths], "changes of the first layer")
        lab.create(second, base)
        with lab.files(second) as files:
            files.remove(paths[depth])
        expect_equal(lab.changes(second, base), [*above, f"D /{paths[depth]}"], f"changes at depth {depth}")
        lab.create(third, second)
        _make(lab, third, paths[depth:], depth)
        expected = [*above, *(f"A /{path}" for path in paths[depth:])]
        expect_equal(lab.changes(third, second), expected, f"changes at depth {depth}, made again")
        for layer_id in (third, second, base):
            lab.driver.remove(layer_id)


def _make(lab: LayerLab, layer_id: str, paths: list[str], seed: int) -> None:
    """Every path but the last is a directory."""
    with lab.files(layer_id) as files:
        for path in paths[:-1]:
            files.make_directory(path, 0o700)
        files.write(paths[-1], content(seed, 128), 0o600)


@case("store-3", "ListLayers")
def exactly_the_layers_that_were_made_are_listed(lab: LayerLab) -> None:
    expect_equal(lab.driver.list_layers(), [], "layers of a new home")
    lab.layer("b")
    lab.create("c", "b")
    lab.create("a")
    expect_equal(lab.driver.list_layers(), ["a", "b", "c"], "layers")
    lab.driver.remove("b")
    expect_equal(lab.driver.list_layers(), ["a", "c"], "layers after a removal")
    lab.restart()
    expect_equal(lab.driver.list_layers(), ["a", "c"], "layers after a restart")
