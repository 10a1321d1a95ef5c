"""The modules, forward methods and hooks of a network, compared during training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from inspect import getattr_static
from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from torch.optim import Optimizer

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_OPTIMIZER_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
#: Hooks that torch runs for every module.
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)


class Structure:
    """The modules of a network and of a loss, and the hooks of an optimizer, as they are now.

    Training must use the modules that were checked before it: a swapped layer, a replaced forward method or an added
    hook could mix examples or keep something of them.

    Args:
        roots: Name to module (the network under ``""``), or to any other callable, which is ignored.
        optimizer: The optimizer whose hooks are compared.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> optimizer = __import__("torch").optim.SGD(network.parameters(), lr=0.1)
        >>> structure = Structure({"": network}, optimizer)
        >>> network[1] = nn.Tanh()
        >>> structure.changes()
        ["'1' was replaced (ReLU with Tanh)"]
    """

    def __init__(self, roots: Mapping[str, object], optimizer: Optimizer) -> None:
        self._roots = {name: root for name, root in roots.items() if isinstance(root, nn.Module)}
        self._optimizer = optimizer
        self._modules = self._named()
        self._marks = {name: _marks(module) for name, module in self._modules.items()}
        self._looks = [_Look(module, self._marks[name]) for name, module in self._modules.items()]
        self._outer = self._outer_hooks()

    def changed(self) -> bool:
        """Whether forward methods or hooks of the known modules have changed; faster than ``changes``."""
        return any(look.changed() for look in self._looks) or self._outer_hooks() != self._outer

    def changes(self) -> list[str]:
        """What has changed, in words; empty for nothing."""
        current = self._named()
        found = [f"{name!r} was removed" for name in self._modules if name not in current]
        found += [f"{name!r} was added" for name in current if name not in self._modules]
        for name, module in current.items():
            before = self._modules.get(name)
            if before is None:
                continue
            if before is not module:
                found.append(f"{name!r} was replaced ({type(before).__name__} with {type(module).__name__})")
            elif _marks(module) != self._marks[name]:
                found.append(f"the forward method or the hooks of {name or 'the network'!r} were changed")
        if self._outer_hooks() != self._outer:
            found.append("the hooks of the optimizer, or those that torch runs for all modules, were changed")
        return found

    def _outer_hooks(self) -> tuple[Any, ...]:
        return _hooks(self._optimizer, _OPTIMIZER_HOOKS), _hooks(torch_modules, _GLOBAL_HOOKS)

    def _named(self) -> dict[str, nn.Module]:
        return {
            name: module for prefix, root in self._roots.items() for name, module in root.named_modules(prefix=prefix)
        }


class Places:
    """The tensors and modules that are registered as parameters, buffers and submodules.

    Args:
        roots: Modules.

    Example:
        >>> network = nn.Linear(2, 2)
        >>> places = Places([network])
        >>> network.weight = nn.Parameter(network.weight.detach())
        >>> places.intact()
        False
    """

    def __init__(self, roots: Iterable[nn.Module]) -> None:
        modules = dict.fromkeys(module for root in roots for module in root.modules())
        self._tables: list[Mapping[str, Any]] = []
        for module in modules:
            self._tables += [module._parameters, module._buffers, module._modules]
        self._held = [tuple(table.values()) for table in self._tables]

    def intact(self) -> bool:
        """Whether the same objects are registered, and no others."""
        return all(
            len(table) == len(held) and all(map(is_, table.values(), held))
            for table, held in zip(self._tables, self._held, strict=True)
        )


def put_in_place(roots: Mapping[str, nn.Module], name: str, value: Tensor | None) -> None:
    """Register ``value`` as the parameter or buffer ``name`` again; None removes it.

    Args:
        roots: Modules by the prefix of their names.
        name: Its name, with prefix.
        value: What was registered before.
    """
    prefix = next((root for root in roots if root and name.startswith(f"{root}.")), "")
    path, _, leaf = name.removeprefix(f"{prefix}." if prefix else "").rpartition(".")
    with suppress(AttributeError):
        module = roots[prefix].get_submodule(path)
        for table in (module._parameters, module._buffers):
            if leaf in table and table[leaf] is not value:
                if value is None:
                    del table[leaf]
                else:
                    table[leaf] = value  # type: ignore[assignment]


class _Look:
    """A module with its marks, which are made again only if it looks different.

    Args:
        module: The module.
        marks: What ``_marks`` gives.
    """

    def __init__(self, module: nn.Module, marks: tuple[Any, ...]) -> None:
        self._module, self._marks = module, marks
        self._note()

    def changed(self) -> bool:
        """Whether the marks differ."""
        if self._is_as_noted():
            return False
        if _marks(self._module) != self._marks:
            return True
        self._note()
        return False

    def _note(self) -> None:
        self._kind = type(self._module)
        self._forward = self._kind.__dict__.get("forward")
        self._names, self._values = [*self._module.__dict__], [*self._module.__dict__.values()]
        self._is_plain = self._forward is not None and self._is_bare()

    def _is_as_noted(self) -> bool:
        values = self._module.__dict__
        return (
            self._is_plain
            and type(self._module) is self._kind
            and self._kind.__dict__.get("forward") is self._forward
            and [*values] == self._names
            and all(map(is_, values.values(), self._values))
            and self._is_bare()
        )

    def _is_bare(self) -> bool:
        """Whether nothing is hooked."""
        values = self._module.__dict__
        if any(values[name] for name in _HOOKS):
            return False
        return not any(value is not None and value._backward_hooks for value in values["_parameters"].values())


def _marks(module: nn.Module) -> tuple[Any, ...]:
    values = module.__dict__
    # Objects, not ids: an id may be reused once its object is gone.
    kind = type(module)
    forward = getattr_static(kind, "forward", None)  # that of a scripted module is not on its class
    replaced = [item for item in values.items() if callable(item[1]) and hasattr(kind, item[0])]
    for parameter in values["_parameters"].values():
        if parameter is not None and parameter._backward_hooks:
            replaced += parameter._backward_hooks.items()
    return kind, forward, replaced, *[tuple(values[name].items()) for name in _HOOKS if values[name]]


def _hooks(owner: object, names: tuple[str, ...]) -> tuple[Any, ...]:
    values = owner.__dict__
    return tuple((name, tuple(values[name].items())) for name in names if values.get(name))
