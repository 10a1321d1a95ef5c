"""Plugins of a configuration: modules and files that are imported for the names they register."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from dpmodel.config.user_code import import_named, require_not_standard

FILE_ENDING = ".py"


def locate_plugin(plugin: str, beside: Path) -> str:
    """The full path of a plugin file, so that a run folder can find it again; a module name is returned unchanged.

    Args:
        plugin: ``package.module``, or a path ending in ``.py``, relative to ``beside``.
        beside: Folder of the configuration.
    """
    return str((beside / Path(plugin).expanduser()).resolve()) if plugin.endswith(FILE_ENDING) else plugin


def import_plugin(plugin: str) -> None:
    """Import a plugin that ``locate_plugin`` has located, once.

    Raises:
        ValueError: The file or module does not exist, belongs to the standard library, or fails to import; the
            message says where it was searched.
    """
    owner = f"plugin {plugin!r}"
    if not plugin.endswith(FILE_ENDING):
        import_named(plugin, owner)
        return
    try:
        _import_file(Path(plugin), owner)
    except ModuleNotFoundError as error:
        raise ValueError(f"{owner} failed to import: it needs {error.name!r}") from error
    except (Exception, SystemExit) as error:
        if isinstance(error, ValueError) and str(error).startswith(owner):
            raise
        raise ValueError(f"{owner} failed to import: {type(error).__name__}: {error}") from error


def _import_file(path: Path, owner: str) -> None:
    if not path.is_file():
        raise ValueError(f"{owner} does not exist; paths are relative to the configuration file")
    known = sys.modules.get(path.stem)
    if known is not None and Path(getattr(known, "__file__", None) or "").resolve() == path:
        return
    if known is not None:
        raise ValueError(f"{owner} has the same name as the loaded module {path.stem!r}; rename the file")
    require_not_standard(path.stem, owner)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # noqa: PT018 - a path to a .py file always has both
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks up its module while the module is still being executed.
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
