"""Btrees of the metadata: lookup, insertion and removal by shadowing, with the kernel's splitting and merging rules.

A tree is named by the block of its root; whatever changes it returns the root it has afterwards. Keys are u64. Going
down for a change, each node on the path is shadowed and its parent changed, and room is made from the top (a full
node never meets an insertion, a nearly empty one never meets a removal), so that no step ever has to go back up.

Fill rule: a node that is not the root holds at least a third of its maximum.

Source: drivers/md/persistent-data/dm-btree.c and dm-btree-remove.c (Linux 6.1), described in words.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import Final

from cowfs.errors import MetadataCorrupt
from cowfs.thinmeta.format import Node, ValueKind
from cowfs.thinmeta.store import Store

END_OF_KEYS: Final = 2**64
_MAX_DEPTH: Final = 16
_WORTH_MOVING: Final = 8  # free entries a sibling must have before entries move there instead of splitting


def _keep_nothing(_node: Node) -> None:
    """Leaves that point to nothing."""


class BTree:
    """The operations on all trees of one value kind.

    Args:
        name: what the tree is, for error messages.
        retain: adds a reference to everything a copied leaf points to.
        release: drops a reference from everything a destroyed leaf points to.
    """

    def __init__(
        self,
        store: Store,
        kind: ValueKind,
        name: str,
        *,
        retain: Callable[[Node], None] = _keep_nothing,
        release: Callable[[Node], None] = _keep_nothing,
    ) -> None:
        self._store = store
        self._kind = kind
        self._name = name
        self._retain = retain
        self._release = release

    # ------------------------------------------------------------------ reading

    def leaf_at(self, root: int, key: int) -> tuple[Node, int, int]:
        """The leaf whose range contains `key`, and that range [lower, upper)."""
        lower, upper = 0, END_OF_KEYS
        location = root
        for _ in range(_MAX_DEPTH):
            node = self._store.read(location, self._kind, self._name)
            if node.is_leaf:
                return node, lower, upper
            keys = node.keys
            i = max(0, bisect_right(keys, key) - 1)
            if i:
                lower = keys[i]
            if i + 1 < len(keys):
                upper = keys[i + 1]
            location = node.values[i]
        raise self._too_deep(root)

    def get(self, root: int, key: int) -> array[int] | None:
        """The `stride` words of a value, None when the key is absent."""
        leaf, _, _ = self.leaf_at(root, key)
        i = bisect_left(leaf.keys, key)
        if i == len(leaf.keys) or leaf.keys[i] != key:
            return None
        stride = self._kind.stride
        return leaf.values[i * stride : (i + 1) * stride]

    def leaves(self, root: int, begin: int = 0, end: int = END_OF_KEYS) -> Iterator[Node]:
        """Leaves that may hold keys of [begin, end), in order; safe only while the tree does not change."""
        while begin < end:
            leaf, _, begin = self.leaf_at(root, begin)
            yield leaf

    def items(self, root: int) -> Iterator[tuple[int, array[int]]]:
        """(key, value words) in order of keys."""
        stride = self._kind.stride
        for leaf in self.leaves(root):
            for i, key in enumerate(leaf.keys):
                yield key, leaf.values[i * stride : (i + 1) * stride]

    def last_key(self, root: int) -> int | None:
        leaf, _, _ = self.leaf_at(root, END_OF_KEYS - 1)
        return leaf.keys[-1] if leaf.keys else None

    # ------------------------------------------------------------------ insertion

    def empty(self) -> int:
        """A new tree without keys; returns its root."""
        return self._store.new(Node.leaf(self._kind))

    def insert(self, root: int, key: int, *words: int) -> int:
        """Set the value of a key; returns the root."""
        self._store.relieve()
        root, leaf, _ = self._descend_for_insert(root, key)
        stride = self._kind.stride
        i = bisect_left(leaf.keys, key)
        value = array(self._kind.typecode, words)
        if i < len(leaf.keys) and leaf.keys[i] == key:
            leaf.values[i * stride : (i + 1) * stride] = value
        else:
            leaf.keys.insert(i, key)
            leaf.values[i * stride : i * stride] = value
        return root

    def insert_run(self, root: int, key: int, values: array[int]) -> tuple[int, array[int]]:
        """Set consecutive keys from `key` on to `values` (one word each).

        Returns:
            The root, and the values that were replaced, in order of keys.
        """
        replaced = array(self._kind.typecode)
        done = 0
        while done < len(values):
            first = key + done
            self._store.relieve()
            root, leaf, upper = self._descend_for_insert(root, first)
            keys = leaf.keys
            i = bisect_left(keys, first)
            room = self._kind.max_entries - len(keys)
            take = min(len(values) - done, upper - first)
            j = bisect_left(keys, first + take, i)
            while take > room + (j - i):
                take = room + (j - i)
                j = bisect_left(keys, first + take, i)
            if j > i:
                replaced.extend(leaf.values[i:j])
            keys[i:j] = array("Q", range(first, first + take))
            leaf.values[i:j] = values[done : done + take]
            done += take
        return root, replaced

    def _descend_for_insert(self, root: int, key: int) -> tuple[int, Node, int]:
        """Shadow the path to the leaf for `key` and make room: (root, leaf, end of the leaf's range)."""
        root, node = self._shadow(root)
        parent: Node | None = None
        index = 0
        upper = parent_upper = END_OF_KEYS
        for _ in range(_MAX_DEPTH):
            if self._is_full_for(node, key):
                if parent is None:
                    self._split_root(node)
                else:
                    index = self._make_room(parent, index, key)
                    upper = parent.keys[index + 1] if index + 1 < len(parent.keys) else parent_upper
                    node = self._child(parent, index)
            if node.is_leaf:
                return root, node, upper
            index = bisect_right(node.keys, key) - 1
            if index < 0:
                node.keys[0] = key
                index = 0
            parent, parent_upper = node, upper
            if index + 1 < len(node.keys):
                upper = node.keys[index + 1]
            node = self._shadow_child(parent, index)
        raise self._too_deep(root)

    def _is_full_for(self, node: Node, key: int) -> bool:
        if len(node.keys) < node.kind.max_entries:
            return False
        if not node.is_leaf:
            return True
        i = bisect_left(node.keys, key)
        return i == len(node.keys) or node.keys[i] != key

    def _split_root(self, node: Node) -> None:
        """Move a full root's content into two new children of it."""
        half = len(node.keys) // 2
        left, right = _cut(node, 0, half), _cut(node, half, len(node.keys))
        children = array("Q", (self._store.new(left), self._store.new(right)))
        node.keys = array("Q", (left.keys[0], right.keys[0]))
        node.kind, node.is_leaf, node.values = _INTERNAL_KIND, False, children

    def _make_room(self, parent: Node, index: int, key: int) -> int:
        """Make room in the full child `index`; returns the child that `key` belongs to now."""
        count = len(parent.keys)
        if index > 0 and self._free_entries(parent, index - 1) >= _WORTH_MOVING:
            self._level_two(parent, index - 1)
        elif index + 1 < count and self._free_entries(parent, index + 1) >= _WORTH_MOVING:
            self._level_two(parent, index)
        elif count <= 2 or index in (0, count - 1) or self._has_shared_sibling(parent, index):
            self._split_into_two(parent, index)
        else:
            self._split_into_three(parent, index - 1)
        return max(0, bisect_right(parent.keys, key) - 1)

    def _free_entries(self, parent: Node, index: int) -> int:
        location = parent.values[index]
        if self._store.is_shared(location):
            return 0
        node = self._read(location)
        return node.kind.max_entries - len(node.keys)

    def _has_shared_sibling(self, parent: Node, index: int) -> bool:
        return self._store.is_shared(parent.values[index - 1])

    def _split_into_two(self, parent: Node, index: int) -> None:
        node = self._child(parent, index)
        half = len(node.keys) // 2
        right = _cut(node, half, len(node.keys))
        _truncate(node, half)
        parent.keys.insert(index + 1, right.keys[0])
        parent.values.insert(index + 1, self._store.new(right))

    def _split_into_three(self, parent: Node, index: int) -> None:
        """Spread children `index` and `index + 1` over three."""
        left, right = self._shadow_child(parent, index), self._shadow_child(parent, index + 1)
        middle = Node(left.kind, left.is_leaf, array("Q"), array(left.kind.typecode))
        location = self._store.new(middle)
        _spread_three(left, middle, right, more_left=False)
        parent.keys[index + 1] = right.keys[0]
        parent.keys.insert(index + 1, middle.keys[0])
        parent.values.insert(index + 1, location)

    # ------------------------------------------------------------------ removal

    def remove(self, root: int, key: int) -> int:
        """Remove a key that exists; returns the root. What its value points to is left to the caller."""
        root, _ = self.remove_range(root, key, key + 1)
        return root

    def remove_range(self, root: int, begin: int, end: int) -> tuple[int, array[int]]:
        """Remove every key of [begin, end).

        Returns:
            The root, and the words of the removed values in order of keys.
        """
        removed = array(self._kind.typecode)
        stride = self._kind.stride
        while begin < end:
            begin = self._next_key(root, begin)
            if begin >= end:
                break
            self._store.relieve()
            root, leaf, spare = self._descend_for_remove(root, begin)
            i = bisect_left(leaf.keys, begin)
            j = min(bisect_left(leaf.keys, end, i), i + spare)
            begin = leaf.keys[j - 1] + 1
            removed.extend(leaf.values[i * stride : j * stride])
            del leaf.keys[i:j]
            del leaf.values[i * stride : j * stride]
        return root, removed

    def _next_key(self, root: int, key: int) -> int:
        """The first key at or after `key`, END_OF_KEYS when there is none."""
        while key < END_OF_KEYS:
            leaf, _, upper = self.leaf_at(root, key)
            i = bisect_left(leaf.keys, key)
            if i < len(leaf.keys):
                return leaf.keys[i]
            key = upper
        return END_OF_KEYS

    def _descend_for_remove(self, root: int, key: int) -> tuple[int, Node, int]:
        """Shadow the path to the leaf of `key`, merging and levelling on the way.

        Returns:
            The root, the leaf, and how many entries may be removed before the path must be looked at again.
        """
        root, node = self._shadow(root)
        spare = len(node.keys)
        for _ in range(_MAX_DEPTH):
            if node.is_leaf:
                return root, node, spare
            if len(node.keys) == 1:
                self._take_over_only_child(node)
                spare = len(node.keys)
                continue
            spare = self._rebalance(node, max(0, bisect_right(node.keys, key) - 1))
            node = self._shadow_child(node, max(0, bisect_right(node.keys, key) - 1))
            if node.is_leaf:
                spare = max(1, min(spare, len(node.keys) - node.kind.max_entries // 3))
        raise self._too_deep(root)

    def _take_over_only_child(self, node: Node) -> None:
        location = node.values[0]
        child = self._read(location)
        node.kind, node.is_leaf, node.keys, node.values = child.kind, child.is_leaf, child.keys[:], child.values[:]
        if self._store.is_shared(location):
            self._retain_all(node)
            self._store.counts.decrement(location)
        else:
            self._free_node(location)

    def _rebalance(self, parent: Node, index: int) -> int:
        """Make child `index` safe to remove from; returns how many removals its neighbourhood can bear."""
        last = len(parent.keys) - 1
        if index == 0:
            return self._merge_or_level(parent, 0)
        if index == last:
            return self._merge_or_level(parent, last - 1)
        left, middle, right = (self._shadow_child(parent, i) for i in (index - 1, index, index + 1))
        minimum = left.kind.max_entries // 3
        total = len(left.keys) + len(middle.keys) + len(right.keys)
        if total < 4 * minimum + 1:
            self._empty_middle(parent, index, left, middle, right)
            return self._merge_or_level(parent, index - 1)
        _spread_three(left, middle, right, more_left=True)
        parent.keys[index], parent.keys[index + 1] = middle.keys[0], right.keys[0]
        return total - 4 * minimum

    def _empty_middle(self, parent: Node, index: int, left: Node, middle: Node, right: Node) -> None:
        moved = min(left.kind.max_entries - len(left.keys), len(middle.keys))
        location = parent.values[index]
        _append(left, middle, 0, moved)
        _prepend(right, middle, moved)
        parent.keys[index + 1] = right.keys[0]
        del parent.keys[index]
        del parent.values[index]
        self._free_node(location)

    def _merge_or_level(self, parent: Node, index: int) -> int:
        """Make one of children `index` and `index + 1` when they fit the fill rule that way, else level them."""
        left, right = self._shadow_child(parent, index), self._shadow_child(parent, index + 1)
        minimum = left.kind.max_entries // 3
        total = len(left.keys) + len(right.keys)
        # One more than the minimum on either side, as an entry is about to go.
        if total < 2 * (minimum + 1):
            location = parent.values[index + 1]
            _append(left, right, 0, len(right.keys))
            del parent.keys[index + 1]
            del parent.values[index + 1]
            self._free_node(location)
            return len(left.keys)
        self._level_two(parent, index)
        return total - 2 * (minimum + 1) + 1

    # ------------------------------------------------------------------ whole trees

    def destroy(self, root: int) -> None:
        """Drop one reference of a tree; what only it used is freed."""
        pending = [root]
        while pending:
            location = pending.pop()
            if self._store.counts.count(location) > 1:
                self._store.counts.decrement(location)
                continue
            node = self._read(location)
            if node.is_leaf:
                self._release(node)
            else:
                pending.extend(reversed(node.values))
            self._free_node(location)

    # ------------------------------------------------------------------ nodes

    def _read(self, location: int) -> Node:
        return self._store.read(location, self._kind, self._name)

    def _shadow(self, location: int) -> tuple[int, Node]:
        return self._store.shadow(location, self._kind, self._name, self._retain)

    def _shadow_child(self, parent: Node, index: int) -> Node:
        location, node = self._shadow(parent.values[index])
        parent.values[index] = location
        return node

    def _child(self, parent: Node, index: int) -> Node:
        """A child that is already shadowed."""
        return self._read(parent.values[index])

    def _level_two(self, parent: Node, index: int) -> None:
        left, right = self._shadow_child(parent, index), self._shadow_child(parent, index + 1)
        target = (len(left.keys) + len(right.keys)) // 2
        if len(left.keys) > target:
            _prepend(right, left, target)
            _truncate(left, target)
        elif len(left.keys) < target:
            moved = target - len(left.keys)
            _append(left, right, 0, moved)
            _drop_first(right, moved)
        parent.keys[index + 1] = right.keys[0]

    def _retain_all(self, node: Node) -> None:
        if node.is_leaf:
            self._retain(node)
        else:
            for child in node.values:
                self._store.counts.increment(child)

    def _free_node(self, location: int) -> None:
        self._store.counts.decrement(location)
        self._store.forget(location)

    def _too_deep(self, root: int) -> MetadataCorrupt:
        return MetadataCorrupt(f"the tree is deeper than {_MAX_DEPTH} levels", block=root, path=self._name)


# ---------------------------------------------------------------------------------------------- entries

_INTERNAL_KIND: Final = Node.internal(array("Q"), array("Q")).kind


def _cut(node: Node, begin: int, end: int) -> Node:
    """A new node with a copy of entries [begin, end)."""
    stride = node.kind.stride
    return Node(node.kind, node.is_leaf, node.keys[begin:end], node.values[begin * stride : end * stride])


def _truncate(node: Node, count: int) -> None:
    del node.keys[count:]
    del node.values[count * node.kind.stride :]


def _drop_first(node: Node, count: int) -> None:
    del node.keys[:count]
    del node.values[: count * node.kind.stride]


def _append(target: Node, source: Node, begin: int, end: int) -> None:
    stride = source.kind.stride
    target.keys.extend(source.keys[begin:end])
    target.values.extend(source.values[begin * stride : end * stride])


def _prepend(target: Node, source: Node, begin: int) -> None:
    """Put the entries of `source` from `begin` on before those of `target`."""
    target.keys[0:0] = source.keys[begin:]
    target.values[0:0] = source.values[begin * source.kind.stride :]


def _spread_three(left: Node, middle: Node, right: Node, *, more_left: bool) -> None:
    """Share the entries of three neighbours evenly. A remainder is put left or right; of two, one in the middle."""
    stride = left.kind.stride
    keys = left.keys + middle.keys + right.keys
    values = left.values + middle.values + right.values
    share, remainder = divmod(len(keys), 3)
    more = share + (remainder > 0)
    cuts = (0, more, len(keys) - share, len(keys)) if more_left else (0, share, len(keys) - more, len(keys))
    for node, begin, end in zip((left, middle, right), cuts, cuts[1:], strict=False):
        node.keys = keys[begin:end]
        node.values = values[begin * stride : end * stride]
