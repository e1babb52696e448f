"""Ensembles of trees in XGBoost's JSON format, read by its every version from 1.6 on.

The format: https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html. Nodes are told without the
sums of second derivatives, which for a squared loss would be counts of rows; XGBoost needs them neither for
predictions nor for its measures of importance by gain and by number of splits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from atoll.core.errors import DataError
from atoll.core.layout import Array
from atoll.models.trees import Column, Loss, Trees, packed, unpacked, width_of

__all__ = ["from_xgboost", "to_xgboost"]

_ROOT = 2147483647
"""What XGBoost writes for the parent of a root."""

_VERSION = [1, 6, 0]
_OBJECTIVES: Mapping[Loss, str] = {"logistic": "binary:logistic", "squared": "reg:squarederror"}
_MOST_PLACES = 2**11 - 1
"""Places of a heap of depth 10; no tree of ours is deeper."""


def to_xgboost(trees: Trees, gain: Array | None = None) -> dict[str, Any]:
    """A JSON-able model for ``xgboost.Booster().load_model``.

    Args:
        trees: the ensemble.
        gain: how much each split lowered the loss, as ``trees.split``; zeros if not given.
    """
    gains = np.zeros(trees.split.shape) if gain is None else gain
    columns, count = trees.columns, len(trees)
    base = 1.0 / (1.0 + math.exp(-trees.base)) if trees.loss == "logistic" else trees.base
    told = [_tree(trees, tree, gains[tree]) for tree in range(count)]
    model = {
        "gbtree_model_param": {"num_trees": str(count), "num_parallel_tree": "1"},
        "tree_info": [0] * count,
        "trees": told,
    }
    return {
        "learner": {
            "attributes": {},
            "feature_names": [column.name for column in columns],
            "feature_types": ["c" if column.levels else "float" for column in columns],
            "gradient_booster": {"model": model, "name": "gbtree"},
            "learner_model_param": {
                "base_score": repr(base),
                "num_class": "0",
                "num_feature": str(len(columns)),
                "num_target": "1",
            },
            "objective": {
                "name": _OBJECTIVES[trees.loss],
                "reg_loss_param": {"scale_pos_weight": "1"},
            },
        },
        "version": _VERSION,
    }


@dataclass
class _Nodes:
    """The nodes of one tree that exist, parents before children.

    Args:
        heap: their places in the heap.
    """

    heap: list[int]
    number: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.number = {place: i for i, place in enumerate(self.heap)}

    @classmethod
    def of(cls, split: Array) -> _Nodes:
        """Breadth first from the root."""
        heap = [0]
        for place in heap:
            if place < len(split) and split[place] >= 0:
                heap += [2 * place + 1, 2 * place + 2]
        return cls(heap)


def _tree(trees: Trees, tree: int, gain: Array) -> dict[str, Any]:
    split, value = trees.split[tree], trees.value[tree]
    goes_left = unpacked(trees.left[tree], trees.width)
    nodes = _Nodes.of(split)
    inner = [p < len(split) and split[p] >= 0 for p in nodes.heap]
    sets = {
        i: _categories(trees.columns[int(split[p])], goes_left[p])
        for i, p in enumerate(nodes.heap)
        if inner[i] and trees.columns[int(split[p])].levels
    }
    pairs = list(zip(nodes.heap, inner, strict=True))
    sizes = [len(codes) for codes in sets.values()]
    return {
        "id": tree,
        "left_children": [nodes.number[2 * p + 1] if i else -1 for p, i in pairs],
        "right_children": [nodes.number[2 * p + 2] if i else -1 for p, i in pairs],
        "parents": [nodes.number[(p - 1) // 2] if p else _ROOT for p in nodes.heap],
        "split_indices": [int(split[p]) if i else 0 for p, i in pairs],
        "split_conditions": [
            _condition(trees.columns[int(split[p])], goes_left[p]) if i else float(value[p])
            for p, i in pairs
        ],
        "split_type": [int(n in sets) for n in range(len(pairs))],
        "default_left": [int(goes_left[p, -1]) if i else 0 for p, i in pairs],
        "base_weights": [float(value[p]) for p in nodes.heap],
        "loss_changes": [float(gain[p]) if i else 0.0 for p, i in pairs],
        "sum_hessian": [0.0] * len(pairs),
        "categories": [code for codes in sets.values() for code in codes],
        "categories_nodes": list(sets),
        "categories_segments": [sum(sizes[:i]) for i in range(len(sizes))],
        "categories_sizes": sizes,
        "tree_param": _parameters(len(trees.columns), len(pairs)),
    }


def _parameters(columns: int, nodes: int) -> Mapping[str, str]:
    return {
        "num_deleted": "0",
        "num_feature": str(columns),
        "num_nodes": str(nodes),
        "size_leaf_vector": "1",
    }


def _condition(column: Column, goes_left: Array) -> float:
    """Numbers below it go left; all of them where only missing values go right."""
    if column.levels:
        return 0.0
    left = int(goes_left[: column.cells].sum())
    return float(column.cuts[left - 1] if left < column.cells else np.finfo(np.float32).max)


def _categories(column: Column, goes_left: Array) -> Sequence[int]:
    """Codes of the categories that go right, as XGBoost keeps them."""
    return sorted(int(code) for i, code in enumerate(column.levels) if not goes_left[i])


def from_xgboost(told: Mapping[str, Any], levels: Mapping[str, int]) -> Trees:
    """The ensemble that :func:`to_xgboost` told: it sends every row the same way.

    A column is cut at the points that some split reads. The base goes through a probability and back, so
    predictions are the same up to rounding.

    Args:
        told: the JSON-able model.
        levels: how many categories a column of them has, by name.

    Raises:
        DataError: it is none that :func:`to_xgboost` has told.
    """
    try:
        return _ensemble(told["learner"], levels)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            "these are no trees that Atoll has written", remedy="fetch the run's folder again"
        ) from error


def _ensemble(learner: Mapping[str, Any], levels: Mapping[str, int]) -> Trees:
    names, kinds = learner["feature_names"], learner["feature_types"]
    told = learner["gradient_booster"]["model"]["trees"]
    cuts: list[set[float]] = [set() for _ in names]
    for tree in told:
        for node, left in enumerate(tree["left_children"]):
            if left >= 0 and not tree["split_type"][node]:
                cuts[tree["split_indices"][node]].add(float(tree["split_conditions"][node]))
    columns = tuple(
        Column(name, np.zeros(0), tuple(map(float, range(levels[name]))))
        if kind == "c"
        else Column(name, np.array(sorted(own), np.float64))
        for name, kind, own in zip(names, kinds, cuts, strict=True)
    )
    nodes = [_heap(tree) for tree in told]
    deepest = max([2, *(place for own in nodes for place in own.values())])
    inner = 2 ** ((deepest + 1).bit_length() - 1) - 1
    split, value = np.full((len(told), inner), -1.0), np.zeros((len(told), 2 * inner + 1))
    left = np.zeros((len(told), inner, width_of(columns)), bool)
    for i, (tree, own) in enumerate(zip(told, nodes, strict=True)):
        for node, place in own.items():
            if tree["left_children"][node] < 0:
                value[i, place] = tree["split_conditions"][node]
            else:
                split[i, place] = tree["split_indices"][node]
                left[i, place] = _goes_left(
                    columns[int(split[i, place])], tree, node, left.shape[2]
                )
    loss = {name: loss for loss, name in _OBJECTIVES.items()}[learner["objective"]["name"]]
    base = float(learner["learner_model_param"]["base_score"])
    if loss == "logistic":
        base = math.log(base / (1.0 - base))
    return Trees(columns, loss, base, split, packed(left), value)


def _heap(tree: Mapping[str, Any]) -> dict[int, int]:
    """The place of each node in the heap; parents come before children."""
    places = {0: 0}
    for node, (left, right) in enumerate(
        zip(tree["left_children"], tree["right_children"], strict=True)
    ):
        if left >= 0:
            places |= {left: 2 * places[node] + 1, right: 2 * places[node] + 2}
            if places[right] >= _MOST_PLACES:
                raise ValueError("a tree is too deep")
    return places


def _goes_left(column: Column, tree: Mapping[str, Any], node: int, width: int) -> Array:
    """The cells that a node sends to the left, ``(width,)`` bool."""
    left = np.zeros(width, bool)
    if column.levels:
        at = tree["categories_nodes"].index(node)
        start, size = tree["categories_segments"][at], tree["categories_sizes"][at]
        right = tree["categories"][start : start + size]
        left[: column.cells] = ~np.isin(column.levels, right)
    else:
        left[: int(np.searchsorted(column.cuts, tree["split_conditions"][node])) + 1] = True
    left[-1] = tree["default_left"][node]
    return left
