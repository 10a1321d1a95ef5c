"""Trainings in which examples affect each other, by kind, each with a twin in which they do not."""

from __future__ import annotations

from . import (
    callbacks,
    collation,
    conditional,
    datasets,
    delayed,
    dispatch,
    draws,
    functions,
    hooks,
    kernels,
    layers,
    losses,
    memory,
    numbers_kept,
    operators,
    outside,
    sorted_data,
    state,
)

MEMBERS = [
    member
    for kind in (
        conditional,
        delayed,
        draws,
        functions,
        state,
        memory,
        numbers_kept,
        sorted_data,
        losses,
        layers,
        kernels,
        hooks,
        dispatch,
        operators,
        outside,
        collation,
        datasets,
        callbacks,
    )
    for member in kind.MEMBERS
]
