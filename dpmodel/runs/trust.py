"""Trust in the code that the configuration of a run folder names: only a folder that was made here may run it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from dpmodel.config import Config, load_config
from dpmodel.config.plugins import FILE_ENDING
from dpmodel.config.reader import Override, require_names
from dpmodel.config.user_code import source_of
from dpmodel.runs.folder import RunFolder
from dpmodel.saving.marks import TrainingMark
from monitors.errors import ConfigError
from monitors.untrusted import parse_json, read_untrusted

#: Networks that come with dpmodel.
_BUILT_IN = "dpmodel."

#: Longest first line of a journal that is searched for the ID of the training.
_LONGEST_LINE = 2**16


def load_run(folder: RunFolder, overrides: Iterable[Override] = (), *, trust_code: bool = False) -> Config:
    """The configuration of a run folder, with its plugins imported.

    Args:
        folder: The run folder.
        overrides: The user's own settings; code that they name is the user's choice.
        trust_code: Run the code that the configuration names, even if the folder was not made here.

    Raises:
        ConfigError: A setting is wrong, or the folder was not made here and names code; says which.
    """
    config = load_config(folder.config, overrides, import_plugins=False)
    if not trust_code:
        require_trusted(folder, config)
    require_names(config)
    return config


def require_trusted(folder: RunFolder, config: Config) -> None:
    """Refuse the code that the configuration of a folder names, unless the folder was made here.

    Raises:
        ConfigError: Says what would run, and from which file.
    """
    named = untrusted_code(folder, config)
    if named:
        code = ", ".join(f"{path} {name!r}{_origin(name, file)}" for path, (name, file) in named.items())
        raise ConfigError(
            f"{config.where(next(iter(named)))}: {folder.path} was not made here, and its configuration names code that"
            f" would run: {code}. If you trust its author, pass --trust-code (in Python: trust_code=True)"
        )


def untrusted_code(folder: RunFolder, config: Config) -> dict[str, tuple[str, Path | None]]:
    """The code that the configuration of a folder names and that may not run without the user's consent.

    Returns:
        Path of each setting, with the name it states and the file the name stands for. Empty if the folder was made
        here, except for code inside the folder: no training finds any there.
    """
    named = _named_code(config)
    if named and made_here(folder):
        return {path: code for path, code in named.items() if _is_inside(code[1], folder.path)}
    return named


def made_here(folder: RunFolder) -> bool:
    """Whether this user's mark of the training shows that its configuration is the one that was written here."""
    try:
        digest = hashlib.sha256(read_untrusted(folder.config)).hexdigest()
    except (OSError, ValueError):
        return False
    mark = TrainingMark.of(_training_id(folder))
    return mark is not None and mark.config == digest


def _training_id(folder: RunFolder) -> str:
    """The ID that the first line of the journal states; empty if there is none."""
    try:
        if not folder.journal.is_file():
            return ""
        with folder.journal.open("rb") as stream:
            _, _, text = stream.readline(_LONGEST_LINE).decode("utf-8").partition(" ")
        return str(parse_json(text)["id"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _named_code(config: Config) -> dict[str, tuple[str, Path | None]]:
    """Path of each setting of the folder itself that names code outside dpmodel, with the name and its file."""
    named = {}
    features = {} if config.features is None else config.features.options
    for path, module in (("network.module", config.network.module), ("features.module", features.get("module"))):
        if isinstance(module, str) and not module.startswith(_BUILT_IN):
            named[path] = (module, source_of(module.partition(":")[0]))
    for index, plugin in enumerate(config.plugins):
        file = Path(plugin) if plugin.endswith(FILE_ENDING) else source_of(plugin)
        named[f"plugins.{index}"] = (plugin, file)
    # An override is marked with its place on the command line, a setting of the folder with its file.
    return {path: code for path, code in named.items() if config.where(path).startswith(config.source)}


def _is_inside(file: Path | None, folder: Path) -> bool:
    return file is not None and file.resolve().is_relative_to(folder.resolve())


def _origin(name: str, file: Path | None) -> str:
    if file is None:
        return " (no file found)"
    return "" if name == str(file) else f" (from {str(file)!r})"
