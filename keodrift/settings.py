"""Settings from a command line: ``key=value`` words over a dictionary of defaults."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from keodrift.errors import (
    ArgumentError,
    EngineError,
    MissingDependencyError,
    OptionError,
    RunError,
)


def read_settings(
    words: Sequence[str],
    defaults: Mapping[str, Any] | Path,
    *,
    quick: Mapping[str, Any] | None = None,
    choices: Mapping[str, Sequence[Any]] | None = None,
) -> Any:
    """Defaults as the words of a command line change them.

    Args:
        words: Such as ``"tau=0.05"``, ``"sizes=[100,200]"`` or ``"toy.drift.tau=0.1"``.
        defaults: Every setting there is; a value must be of its default's type, and where that is
            None it may be anything. A path is that of a YAML file.
        quick: Sizes for a run of seconds, which ``quick=true`` puts in place of the defaults.
        choices: What a setting, or every entry of its list, must be one of.

    Returns:
        The settings as an OmegaConf dictionary, read by key or by attribute.

    Raises:
        OptionError: A word is no ``key=value``, its key is unknown, or its value does not fit.

    Example:
        >>> settings = read_settings(["sizes=[10,20]"], {"tau": 0.1, "sizes": [100]})
        >>> settings.tau, list(settings.sizes)
        (0.1, [10, 20])
    """
    if isinstance(defaults, Path):
        defaults = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(defaults)))
    for word in words:
        if not word.partition("=")[0] or "=" not in word:
            raise OptionError(word, "no value", "the form key=value")
    try:
        given = OmegaConf.to_container(OmegaConf.from_dotlist(list(words)), resolve=True)
    except (OmegaConfBaseException, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise OptionError("settings", repr(" ".join(words)), f"a fix: {reason}") from error
    if quick is not None:
        defaults = {**defaults, "quick": False}
    settings = _fit("", given, defaults)
    if quick is not None and settings["quick"]:
        settings = _fit("", given, _fit("", quick, defaults))
    for key, allowed in (choices or {}).items():
        value = settings[key]
        if not set(value if isinstance(value, list) else [value]) <= set(allowed):
            needs = "some" if isinstance(value, list) else "one"
            raise OptionError(key, repr(value), f"{needs} of {', '.join(map(str, allowed))}")
    return OmegaConf.create(settings)


def _fit(key: str, value: Any, default: Any) -> Any:
    """The value, with defaults where a dictionary leaves them out, if it is of their type."""
    if isinstance(default, Mapping) and isinstance(value, Mapping):
        settings = dict(default)
        for name, entry in value.items():
            inner = f"{key}.{name}" if key else str(name)
            if name not in default:
                raise OptionError(inner, repr(entry), f"another key: {', '.join(default)}")
            settings[name] = _fit(inner, entry, default[name])
        return settings
    if isinstance(default, list) and isinstance(value, list):
        return [_fit(key, entry, default[0]) for entry in value] if default else value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if default is not None and type(value) is not type(default):
        raise OptionError(key, repr(value), f"a value like {default!r}")
    return value


def run_script(
    main: Callable[[Any], int | None], defaults: Mapping[str, Any], **kinds: Any
) -> NoReturn:
    """Reads the settings of a script from its command line, calls it and ends the process.

    The exit status is what ``main`` returns, or as `exit_status` says.

    Args:
        main: What the script does with its settings.
        defaults: As in `read_settings`.
        **kinds: ``quick`` and ``choices``, as there.
    """
    script, *words = sys.argv
    sys.exit(exit_status(Path(script).name, lambda: main(read_settings(words, defaults, **kinds))))


def exit_status(name: str, call: Callable[[], int | None]) -> int:
    """Calls, and says in one sentence on standard error what went wrong.

    Args:
        name: Of the program, with which the sentence begins.
        call: What is to be done.

    Returns:
        What the call returned, 0 for None; 1 if a run failed, 2 if what the user asked for is
        wrong, 130 if it was interrupted.

    Example:
        >>> exit_status("nothing", lambda: None)
        0
    """
    try:
        return call() or 0
    except (ArgumentError, MissingDependencyError) as error:
        status, reason = 2, str(error)
    except (RunError, EngineError, FloatingPointError, OSError) as error:
        status, reason = 1, str(error)
    except KeyboardInterrupt:
        status, reason = 130, "interrupted; what is finished is kept."
    print(f"{name}: {reason}", file=sys.stderr)
    return status
