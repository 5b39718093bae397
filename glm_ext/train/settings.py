"""Settings as frozen dataclasses: each is declared once, with its default and its help.

YAML keys and command-line options are both read off the declarations, so `--optim.lr 1e-3`,
`optim: {lr: 1e-3}` and `OptimConfig(lr=1e-3)` are the same thing.
"""

from __future__ import annotations

import re
import typing
from argparse import ArgumentError
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm_ext.data.files import decode, write_atomically
from glm_ext.extras import require
from glm_ext.spelling import did_you_mean

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from typing_extensions import Self


class ConfigError(ValueError):
    """A setting that the run cannot have; the message says what was expected and what came."""


def setting(default: Any, help: str) -> Any:
    """A field of a settings class."""
    return field(default=default, metadata={"help": help})


def expect(condition: bool, name: str, expected: str, value: object) -> None:
    if not condition:
        raise ConfigError(f"{name}: expected {expected}, got {value!r}")


def expect_one_of(choices: Iterable[str], name: str, value: object) -> None:
    *others, last = choices
    expect(value in (*others, last), name, f"{', '.join(others)} or {last}", value)


class Settings:
    """All settings of a command, and how they are stored; a frozen dataclass inherits it."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(typing.cast(Any, self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of to_dict; a missing key takes its default, an unknown one is refused."""
        with config_errors(setting_names(cls)):
            return from_namespace(cls, config_parser(cls).parse_object(_given(cls, values)))

    def to_yaml(self, path: Path) -> None:
        parser = config_parser(type(self))
        write_atomically(path, parser.dump(parser.parse_object(self.to_dict())).encode())

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        with config_errors(setting_names(cls), file=path):
            return from_namespace(cls, config_parser(cls).parse_object(read_settings(cls, path)))


def config_parser(
    cls: type[Settings], prog: str = "glm-ext", description: str = "", *, recipes: Path | None = None
) -> ArgumentParser:
    """A parser with one option per setting; it reads YAML files by the same declarations.

    recipes: folder of files that --config takes by their names, where there is no other file of that name.
    """
    ready = {} if recipes is None else {file.stem: file for file in sorted(recipes.glob("*.yaml"))}

    class File(require("jsonargparse", extra="train").ActionConfigFile):  # type: ignore[misc]
        def __call__(self, parser: ArgumentParser, cfg: Namespace, value: str, option: str) -> None:
            file = Path(value)
            if ready and not file.is_file():
                expect(value in ready, "config", f"a YAML file, or one of {', '.join(ready)}", value)
                file = ready[value]
            with config_errors(setting_names(cls), file=file):
                cfg.update(parser.parse_object(read_settings(cls, file), defaults=False))
            cfg[self.dest] = [value]  # jsonargparse reads a text here as a file once more

    parser = command_parser(prog, description)
    what = "YAML file with any of the settings below; options win" + (
        f"; ready: {', '.join(ready)}" if ready else ""
    )
    parser.add_argument("--config", action=File, help=what)
    for key, hint, default, help in _leaves(cls):
        if hint is bool:
            add_flag(parser, key, default, help)
        else:
            parser.add_argument(f"--{key}", type=hint, default=default, help=help)
    return parser


def command_parser(prog: str, description: str) -> ArgumentParser:
    """A parser that raises what is wrong and completes no names."""
    jsonargparse = require("jsonargparse", extra="train")
    parser: ArgumentParser = jsonargparse.ArgumentParser(
        prog=prog, description=description, exit_on_error=False, allow_abbrev=False
    )
    return parser


def add_flag(parser: ArgumentParser, key: str, default: bool, help: str) -> None:
    """An option that says as much alone, --compile, as with a value, --compile true."""
    parser.add_argument(
        f"--{key}", type=bool, nargs="?", const=True, default=default, metavar="true|false", help=help
    )


def setting_names(cls: type[Settings]) -> list[str]:
    """The dotted key of each setting."""
    return [key for key, *_ in _leaves(cls)]


def _leaves(cls: Any, prefix: str = "", instance: Any = None) -> Iterator[tuple[str, Any, Any, str]]:
    """(dotted key, type, default, help) of each setting.

    The defaults of a group are those of the instance that the class around it starts from.
    """
    hints = typing.get_type_hints(cls)
    for declared in fields(cls):
        name, hint = declared.name, hints[declared.name]
        if instance is not None:
            default = getattr(instance, name)
        else:
            factory = declared.default_factory
            default = factory() if callable(factory) else declared.default
        if is_dataclass(hint):
            yield from _leaves(hint, f"{prefix}{name}.", default)
        else:
            yield prefix + name, hint, default, declared.metadata["help"]


def read_settings(cls: type[Settings], path: Path) -> dict[str, Any]:
    """The settings that a YAML file gives, by key; ConfigError for a file that is none.

    What is no group where there should be one, or null where there can be no null, is refused; values and
    names are not looked at.
    """
    if not path.is_file():
        raise ConfigError("there is no such configuration file")
    load = require("jsonargparse", extra="train").get_loader("yaml")
    try:
        # A comment at the end, because it takes a lone "key:" for a text.
        values = load(decode(path.read_bytes()).rstrip() + "\n#")
    except require("yaml", extra="train").YAMLError as error:
        raise ConfigError(f"not YAML: {error}") from None
    return _given(cls, {} if values is None else values)


def _given(cls: Any, values: Any, key: str = "") -> dict[str, Any]:
    """The values of a group of settings, checked for what jsonargparse lets pass.

    A group without a value, as when each of its lines is commented out, gives nothing; a group that is no
    group and a null where there can be none are refused.
    """
    if not isinstance(values, Mapping):
        expect(False, key or "settings", "keys and values", values)
    hints = typing.get_type_hints(cls)
    given = {}
    for name, value in values.items():
        hint, inner = hints.get(name), f"{key}.{name}" if key else name
        has_keys = is_dataclass(hint) or typing.get_origin(hint) is dict
        if value is None and has_keys:
            continue
        if value is None and hint is not None and type(None) not in typing.get_args(hint):
            raise ConfigError(f"{inner}: expected {hint.__name__}, got null")
        given[name] = _given(hint, value, inner) if is_dataclass(hint) else value
    return given


_S = typing.TypeVar("_S", bound=Settings)


def from_namespace(cls: type[_S], namespace: Namespace) -> _S:
    """The settings in what config_parser(cls) parsed; other options in it are left out."""

    def build(cls: Any, values: dict[str, Any]) -> Any:
        hints = typing.get_type_hints(cls)
        made = {}
        for declared in fields(cls):
            value, hint = values[declared.name], hints[declared.name]
            made[declared.name] = build(hint, value) if is_dataclass(hint) else value
        return cls(**made)

    made: _S = build(cls, namespace.as_dict())
    return made


_UNKNOWN_KEY = re.compile(
    r"unrecognized arguments: --(?P<arg>[\w.-]+)|Option '(?P<key>[^']+)' is not accepted"
    r"|Group '(?P<group>[^']+)' does not accept option '(?P<inner>[^']+)'"
)
_WRONG_TYPE = re.compile(
    r'Parser key "(?P<key>[^"]+)":(?P<why>.*)(?:Got|Given) value: (?P<value>.*)', re.DOTALL
)
_EXPECTED = re.compile(r"Expected an? (?:<class '(\w+)'>|([^.\n]+))")


@contextmanager
def config_errors(known: Sequence[str], *, file: Path | None = None) -> Iterator[None]:
    """Turns what jsonargparse raises into one line, with the nearest existing key for a misspelt one.

    file: where the settings come from, to be named.
    """
    place = "" if file is None else f"{file}: "
    try:
        yield
    except (ArgumentError, TypeError, KeyError, ValueError) as error:  # all that jsonargparse raises
        if isinstance(error, ConfigError) and file is None:
            raise
        raise ConfigError(place + _in_one_line(str(error), known)) from None


def _in_one_line(message: str, known: Sequence[str]) -> str:
    if found := _UNKNOWN_KEY.search(message):
        key = found["arg"] or found["key"] or f"{found['group']}.{found['inner']}"
        return f"there is no setting {key!r}{did_you_mean(key, known)}"
    found = _WRONG_TYPE.search(message)
    if found and (kinds := [kind or words for kind, words in _EXPECTED.findall(found["why"])]):
        expected = " or ".join(kinds).replace("NoneType", "null")
        return f"{found['key']}: expected {expected}, got {found['value']}"
    return " ".join(message.replace("Parser key ", "").split())
