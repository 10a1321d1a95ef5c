"""Modules that a configuration names: which may be imported, which file they come from, and their import."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import sysconfig
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

_INSTEAD = "name a module of your project or of an installed package"
_INSTALLED = {"site-packages", "dist-packages"}
_STANDARD = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]
_SCRIPTS = Path(sysconfig.get_path("scripts")).resolve()


def import_named(name: str, owner: str) -> ModuleType:
    """Import a module of the user's project or of an installed package; the current folder is searched last.

    Args:
        name: ``package.module``.
        owner: What names it, for errors (``"plugin 'my_plugin'"``).

    Raises:
        ValueError: The name is malformed, or belongs to the standard library (nothing is imported then); the module is
            not found, or it fails to import.

    Example:
        >>> import_named("os", "plugin 'os'")
        Traceback (most recent call last):
            ...
        ValueError: plugin 'os': 'os' belongs to Python's standard library and is not imported; ...
    """
    require_importable(name, owner)
    here = os.getcwd()
    # The path of a console script lacks the current folder, where the user's module may be. It is added only for such a
    # module: optional imports of any library would find files there, too.
    if here not in sys.path and "" not in sys.path and not _is_found(name.split(".")[0]):
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name != missing and not name.startswith(f"{missing}."):
            raise ValueError(f"{owner}: importing {name!r} failed: it needs {missing!r}") from error
        raise ValueError(
            f"{owner}: there is no module {missing!r}. Run the command in the folder of {name.split('.')[0]}.py "
            f"(now: {here}), or install its package"
        ) from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{owner}: importing {name!r} failed: {type(error).__name__}: {error}") from error


def require_importable(name: str, owner: str) -> None:
    """Refuse a name that is malformed or belongs to the standard library; nothing is imported.

    Raises:
        ValueError: The name is refused; says what to name instead.
    """
    parts = name.split(".")
    if not all(part.isidentifier() and not part.startswith("__") for part in parts):
        raise ValueError(f"{owner}: {name!r} is not the name of a module; give it as package.module")
    require_not_standard(parts[0], owner)
    file = source_of(parts[0])
    if file is not None and (_is_standard(file) or _SCRIPTS in file.resolve().parents):
        raise ValueError(f"{owner}: {file} belongs to the Python installation and is not imported; {_INSTEAD}")


def require_not_standard(name: str, owner: str) -> None:
    """Refuse the top-level name of a module of the standard library, also for a file that would shadow it.

    Raises:
        ValueError: The name is refused.
    """
    if name in sys.stdlib_module_names:
        raise ValueError(
            f"{owner}: {name!r} belongs to Python's standard library and is not imported; {_INSTEAD}. A file of your "
            "own must have a different name"
        )


def source_of(name: str) -> Path | None:
    """The file or folder that ``import name`` would run, found without running anything of it; None if not found.

    Example:
        >>> source_of("dpmodel.nets.lenet5").name
        'lenet5.py'
    """
    top, *inner = name.split(".")
    importlib.invalidate_caches()  # a file may be newer than the last listing of its folder
    try:
        spec = importlib.util.find_spec(top) or PathFinder.find_spec(top, [os.getcwd()])
    except (ImportError, ValueError, AttributeError, OSError):
        return None
    place, folders = _parts(spec)
    path = top
    for part in inner:
        path = f"{path}.{part}"
        try:
            place, folders = _parts(PathFinder.find_spec(path, folders))
        except KeyError:  # a namespace package inside a package asks for its parent, which is not imported
            folders = [inside for folder in folders if os.path.isdir(inside := os.path.join(folder, part))]
            place = Path(folders[0])
    return place


def is_own(file: str | os.PathLike[str] | None) -> bool:
    """Whether a file of code is part of a project, and not of an installed package or of Python itself."""
    return file is not None and not _INSTALLED & set(Path(file).parts) and not _is_standard(Path(file))


def _is_found(top: str) -> bool:
    return top in sys.modules or importlib.util.find_spec(top) is not None


def _parts(spec: ModuleSpec | None) -> tuple[Path | None, list[str]]:
    """The file or folder of a module, and the folders in which its submodules are searched."""
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    if spec is not None and spec.has_location and spec.origin is not None:
        return Path(spec.origin), folders
    return (Path(folders[0]) if folders else None), folders


def _is_standard(file: Path) -> bool:
    full = file.resolve()
    return not _INSTALLED & set(full.parts) and any(full.is_relative_to(folder) for folder in _STANDARD)
