"""Names that a function's code reads, assigns and mentions."""

from __future__ import annotations

import dis
import functools
import types

#: Bytecode instructions that read a global name; the last reads those in annotations of a class, from Python 3.14 on.
_LOADING = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})

#: Names of functions and attributes that look objects up by name.
_LOOKING_UP = frozenset(
    {"globals", "vars", "eval", "exec", "modules", "import_module", "__import__", "__dict__", "__globals__"}
)


@functools.cache
def mentioned_names(code: types.CodeType) -> frozenset[str]:
    """Names, and strings that may name a module, in a function or a function nested in it."""
    inner = (part for part in code.co_consts if isinstance(part, types.CodeType))
    texts = (part for part in code.co_consts if isinstance(part, str))
    return frozenset(code.co_names).union(texts, *map(mentioned_names, inner))


@functools.cache
def read_names(code: types.CodeType) -> frozenset[str]:
    """Global names that a function, or one nested in it, may read; all mentioned names if it looks names up."""
    mentioned = mentioned_names(code)
    if mentioned & _LOOKING_UP:
        return mentioned
    inner = (part for part in code.co_consts if isinstance(part, types.CodeType))
    loaded = (step.argval for step in dis.get_instructions(code) if step.opname in _LOADING)
    return frozenset(loaded).union(*map(read_names, inner))


@functools.cache
def assigned_names(code: types.CodeType) -> frozenset[str]:
    """Global names that a function, or one nested in it, assigns or deletes."""
    inner = (part for part in code.co_consts if isinstance(part, types.CodeType))
    named = (step.argval for step in dis.get_instructions(code) if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"))
    return frozenset(named).union(*map(assigned_names, inner))
