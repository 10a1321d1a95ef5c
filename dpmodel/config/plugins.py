"""Plugins of a configuration: modules and files that are imported for the names they register."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

from monitors.errors import ConfigError

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
        ConfigError: There is no such file or module, or it fails to import; the message says where it was searched.
    """
    try:
        if plugin.endswith(FILE_ENDING):
            _import_file(Path(plugin))
        else:
            _import_module(plugin)
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        raise ConfigError(f"plugin {plugin!r} failed to import: it needs {error.name!r}") from error
    except Exception as error:
        raise ConfigError(f"plugin {plugin!r} failed to import: {type(error).__name__}: {error}") from error


def _import_module(name: str) -> None:
    # The path of a console script lacks the current folder, where the user's module may be.
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(
                f"plugin {name!r} was not found: there is no module {error.name!r}. Install its package, run the "
                f"command in the folder of the module (now: {here}), or give the path of a {FILE_ENDING} file"
            ) from error
        raise


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"plugin {str(path)!r} does not exist; paths are relative to the configuration file")
    known = sys.modules.get(path.stem)
    if known is not None and Path(getattr(known, "__file__", None) or "").resolve() == path:
        return
    if known is not None:
        raise ConfigError(f"plugin {str(path)!r} has the same name as the loaded module {path.stem!r}; rename the file")
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
