"""Origin of each value of a resolved config: the file, an override, or a default."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentlab.study.commented import Keys, layout, lines_of
from latentlab.study.config import content, load_config
from latentlab.study.overrides import overridden, override


def with_origins(source: str | Path, overrides: Sequence[str] = (), plugins: Sequence[str] = ()) -> str:
    """Resolved config as YAML, in which a comment on each line says `file`, `override`, `--plugin` or `default`.

    Raises:
        ConfigError: The config is invalid, as for `load_config`.
    """
    resolved = load_config(source, overrides, plugins).to_dict()
    given, paths = override(content(source)[0], overrides), overridden(overrides)

    def origin(keys: Keys) -> str:
        path = tuple(map(str, keys))
        if keys == ("plugins",) and plugins:
            return "--plugin" if not given.get("plugins") else "file and --plugin"
        if _at(given, keys) is None and (_at(resolved, keys) is not None or keys[-1] not in (_at(given, keys[:-1]) or ())):
            return "default"
        return "override" if any(path[: len(one)] == one for one in paths) else "file"

    return layout(lines_of(resolved, origin))


def _at(value: Any, keys: Keys) -> Any:
    """Value of nested keys; None if there is none."""
    for key in keys:
        if isinstance(value, list) and isinstance(key, int):
            value = value[key]
        else:
            value = value.get(key) if isinstance(value, Mapping) else None
    return value
