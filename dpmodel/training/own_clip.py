"""A clip mechanism for each model."""

from __future__ import annotations

import copy
from weakref import WeakValueDictionary

from dpmodel.data.generators import secret_seed
from dpmodel.data.reachable import reachable
from mechanisms.clipping import ClipMechanism
from mechanisms.engines.state.generators import kind_of

#: Mechanisms that models use, by identity: those of a user may compare by value, and have no hash.
_USED: WeakValueDictionary[int, ClipMechanism] = WeakValueDictionary()


def own_clip(clip_mech: ClipMechanism) -> ClipMechanism:
    """The mechanism itself, or a copy if a model uses it already.

    Random generators of the copy are seeded secretly: two models must not draw the same noise.

    Raises:
        ValueError: It cannot be copied.
    """
    if _USED.get(id(clip_mech)) is not clip_mech:
        _USED[id(clip_mech)] = clip_mech
        return clip_mech
    try:
        copied = copy.deepcopy(clip_mech)
    except Exception as error:
        raise ValueError(
            f"clip_mech {clip_mech!r} is used by another model and cannot be copied ({error}); make a new one for each "
            "model"
        ) from error
    for held in reachable(copied):
        kind = kind_of(held)
        if kind is not None:
            kind.seed(held, secret_seed())
    _USED[id(copied)] = copied
    return copied
