"""Lists every configuration key with its meaning, allowed values and defaults.

Meanings and allowed values come from the configuration classes, defaults from conf/. `--help`
prints them, and scripts/options.py writes docs/options.md and the comments in conf/ from them.
Does not import torch.
"""

import dataclasses
import re
import textwrap
import typing
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from engine.config.compose import CONF, values_of
from engine.config.keys import MEANING
from engine.config.parse import allowed_values, key_types

WIDTH = 100
# The column of `--help` in which meanings begin.
INDENT = 24
# If this many members share a default, they are not named.
MANY = 3


@dataclass(frozen=True)
class Option:
    """The description of a configuration key.

    Attributes:
        group: the key's group, such as `optimizer`, or "" at the root.
        name: the key inside its group.
        meaning: what the key does.
        allowed: the allowed values, in words.
        defaults: maps each member of the group that has the key to its default
            (`{"sgd": 0.1, "lars": 4.0}`). If the group has no members, the only entry is "".
        members: the members of the group, such as the optimizers; empty if it has none.

    """

    group: str
    name: str
    meaning: str
    allowed: str
    defaults: Mapping[str, Any]
    members: Sequence[str] = ()

    @property
    def key(self) -> str:
        """Return the key as it is typed."""
        return f"{self.group}.{self.name}" if self.group else self.name

    def describe_defaults(self) -> str:
        """Return the default as text, or each member's; the most common comes first, without names.

        >>> Option("data", "root", "", "", {"a": 1, "b": 1, "c": 1, "d": 2}).describe_defaults()
        '1, d 2'
        """
        texts = {member: as_typed(value) for member, value in self.defaults.items()}
        if len(set(texts.values())) > 1:
            counts = Counter(texts.values()).most_common(1)
            common = [text for text, count in counts if count >= MANY and count > len(texts) / 2]
            others = [f"{name} {text}" for name, text in texts.items() if text not in common]
            return ", ".join([*common, *others])
        return next(iter(texts.values()))

    def describe_members(self) -> str:
        """Return the names of the members that have the key, or "" if all have it.

        >>> Option("a", "b", "", "", dict.fromkeys("xyz"), "wxyz").describe_members()
        'all but w'
        """
        missing = [name for name in self.members if name not in self.defaults]
        if len(missing) == 1 and len(self.defaults) >= MANY:
            return f"all but {missing[0]}"
        return ", ".join(self.defaults) if missing else ""


def list_options(config: Any, config_name: str) -> list[Option]:
    """List the keys of a configuration class: first those of the root, then each group's."""
    root = yaml.safe_load((CONF / f"{config_name}.yaml").read_text(encoding="utf-8"))
    return [*_root_options(config, root), *_group_options(config)]


def group_members(config: Any) -> dict[str, list[str]]:
    """Return the members of each group that has members: `{"optimizer": ["sgd", "lars"], ...}`."""
    hints = key_types(config)
    return {
        field.name: [name for member in _classes(hints[field.name]) for name in _names(member)]
        for field in dataclasses.fields(config)
        if any(map(_names, _classes(hints[field.name])))
    }


def help_text(usage: str, config: Any, config_name: str) -> str:
    """Return the text that `--help` prints: the command's usage, then every key."""
    options = list_options(config, config_name)
    root = yaml.safe_load((CONF / f"{config_name}.yaml").read_text(encoding="utf-8"))
    chosen = {
        k: v for entry in root["defaults"] if isinstance(entry, dict) for k, v in entry.items()
    }
    lines = [usage.strip(), ""]
    if members := group_members(config):
        lines.append("Groups (group=member)")
        for group, names in members.items():
            lines += _entry(group, f"{' '.join(names)} [{chosen[group]}]")
        if experiments := sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")):
            lines += _entry("+experiment", f"{' '.join(experiments)} (conf/experiment)")
    sections: dict[str, list[Option]] = {}
    for option in options:
        sections.setdefault(option.group if option.group in members else "", []).append(option)
    for group, section in sections.items():
        lines += ["", f"Keys of {group} ({group}.key=value)" if group else "Keys (key=value)"]
        for option in section:
            name = option.name if group else option.key
            lines += _entry(name, _help_line(option))
    return "\n".join(lines)


def markdown_table(options: Sequence[Option]) -> str:
    """Return a Markdown table of keys."""
    lines = ["| Key | Meaning | Values | Default |", "|---|---|---|---|"]
    for option in options:
        meaning = option.meaning
        if members := option.describe_members():
            meaning = f"{meaning} ({members})"
        cells = (f"`{option.key}`", meaning, option.allowed, option.describe_defaults())
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def as_typed(value: Any) -> str:
    """Return a value as a user types it.

    >>> as_typed(None), as_typed(True), as_typed(0.1)
    ('null', 'true', '0.1')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _root_options(config: Any, root: Mapping[str, Any], group: str = "") -> Iterator[Option]:
    """Yield the keys at the root, and those of groups that have no members (`clip.norm`)."""
    hints = key_types(config)
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        classes = _classes(hint)
        if not classes:
            defaults = {"": root[field.name]}
            meaning = field.metadata[MEANING]
            yield Option(group, field.name, meaning, allowed_values(hint), defaults)
        elif not any(map(_names, classes)):
            yield from _root_options(classes[0], root[field.name], field.name)


def _group_options(config: Any) -> Iterator[Option]:
    """Yield the keys of the groups that have members.

    A key comes once, or several times if it means something else in other members.
    """
    hints = key_types(config)
    for group, members in group_members(config).items():
        found: dict[tuple[str, ...], Option] = {}
        for member in _classes(hints[group]):
            member_hints = key_types(member)
            values = {name: values_of(group, name) for name in _names(member)}
            for field in dataclasses.fields(member):
                if field.name == "name":
                    continue
                allowed = allowed_values(member_hints[field.name])
                what = (field.name, field.metadata[MEANING], allowed)
                option = found.setdefault(what, Option(group, *what, {}, members))
                defaults = {name: each[field.name] for name, each in values.items()}
                found[what] = dataclasses.replace(option, defaults={**option.defaults, **defaults})
        yield from found.values()


def _classes(hint: Any) -> list[Any]:
    """Return the configuration classes that a key's type names."""
    parts = typing.get_args(hint) or (hint,)
    return [part for part in parts if isinstance(part, type) and dataclasses.is_dataclass(part)]


def _names(member: Any) -> tuple[str, ...]:
    """Return the names of a group's member, or an empty tuple if the class is not a member."""
    return typing.get_args(typing.get_type_hints(member).get("name"))


def _help_line(option: Option) -> str:
    parts = [option.meaning]
    # The allowed values are not listed if the meaning names each of them.
    listed = option.allowed.partition("one of ")[2].removesuffix(", or null")
    if not set(re.findall(r"[\w-]+", listed)) <= set(re.findall(r"[\w-]+", option.meaning)):
        parts.append(f"({listed})")
    if members := option.describe_members():
        parts.append(f"({members})")
    return f"{' '.join(parts)} [{option.describe_defaults()}]"


def _entry(name: str, text: str) -> Iterable[str]:
    """Return the lines of a name and its wrapped text, in two columns."""
    first = f"  {name:<{INDENT - 4}}  "
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=" " * INDENT,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def conf_files() -> list[Path]:
    """List the files in conf/ whose keys have meanings."""
    groups = ("data", "model", "optimizer", "scheduler")
    members = [path for group in groups for path in (CONF / group).rglob("*.yaml")]
    return [CONF / "train.yaml", CONF / "val.yaml", *sorted(members)]
