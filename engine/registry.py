"""Finds plugins, keeps who supplies what, and answers for what is missing or broken.

A plugin is an entry point of the group ``engine``; the engine's own plugins are found the same way, so a
third party's has no disadvantage. Each is loaded on its own: a broken one is named with its error and the
rest works.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from engine import hookspecs
from engine.errors import UsageError, did_you_mean
from engine.options import GROUPS, Component, Options

if TYPE_CHECKING:
    from torch import Tensor

DISTRIBUTION = "conv-engine"
IDENTIFIER = re.compile(r"[a-z][a-z0-9_]*")
SUFFIX = re.compile(r"\.[a-z0-9]+")
OWN_SUFFIXES = (".safetensors", ".pt", ".pth", ".th")  # of weights that the engine reads itself


@dataclass(frozen=True)
class Plugin:
    """One entry point, with what it supplies or why it failed."""

    name: str
    distribution: str
    version: str
    supplies: tuple[tuple[str, str], ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Entry:
    """One component that a plugin registered."""

    options: type[Component]
    plugin: str

    @property
    def summary(self) -> str:
        """The first line of the component's docstring."""
        return (inspect.getdoc(self.options) or "").partition("\n")[0]


@dataclass(frozen=True)
class Reader:
    """What reads the weights in files of other programs, and the plugin that it is of."""

    read: Callable[[Path], dict[str, Tensor]]
    plugin: str


class Store:
    """What ``engine_options`` receives: collects one plugin's components."""

    def __init__(
        self, plugin: str, taken: Mapping[tuple[str, str], Entry], readers: Mapping[str, Reader] = MappingProxyType({})
    ) -> None:
        self._plugin = plugin
        self._taken, self._readers = taken, readers
        self.added: dict[tuple[str, str], Entry] = {}
        self.added_readers: dict[str, Reader] = {}

    def add(self, group: str, name: str, options: type[Component]) -> None:
        """Register ``options`` as the choice ``name`` of ``group``.

        Raises UsageError for an unknown group, a name taken by another plugin (both owners are named), or a
        class that is not a documented dataclass derived from the group's option class.
        """
        what = f"{group}={name} of plugin '{self._plugin}'"
        if group not in GROUPS:
            raise UsageError(f"{what}: no such group{did_you_mean(group, GROUPS)}")
        if not IDENTIFIER.fullmatch(name):
            raise UsageError(f"{what}: a name is lower-case letters, digits and underscores, starting with a letter")
        if not (isinstance(options, type) and issubclass(options, GROUPS[group])):
            raise UsageError(f"{what}: must be a subclass of engine.{GROUPS[group].__name__}, not {options!r}")
        if "__dataclass_params__" not in vars(options):
            raise UsageError(f"{what}: {options.__name__} must be decorated with @dataclass")
        if not vars(options).get("__doc__") or options.__doc__.startswith(f"{options.__name__}("):  # type: ignore[union-attr]
            raise UsageError(f"{what}: {options.__name__} needs a docstring; --help prints its first line")
        if group == "job":
            _check_job_fields(what, options)
        owner = self._taken.get((group, name)) or self.added.get((group, name))
        if owner:
            raise UsageError(f"{what}: the name is taken by plugin '{owner.plugin}'; rename one or uninstall the other")
        self.added[group, name] = Entry(options, self._plugin)

    def add_reader(self, suffix: str, read: Callable[[Path], dict[str, Tensor]]) -> None:
        """Let ``read`` read the weights in files whose names end in ``suffix``, as ".caffemodel".

        It returns them under plain names, and raises UsageError naming a file that is damaged. Raises UsageError for
        what is no suffix, or is taken.
        """
        what = f"reader of '{suffix}' files, of plugin '{self._plugin}'"
        if not SUFFIX.fullmatch(suffix) or suffix in OWN_SUFFIXES:
            raise UsageError(f"{what}: a suffix is a dot and lower-case letters and digits, none of the engine's own")
        owner = self._readers.get(suffix) or self.added_readers.get(suffix)
        if owner:
            raise UsageError(f"{what}: plugin '{owner.plugin}' reads these; uninstall one of them")
        self.added_readers[suffix] = Reader(read, self._plugin)


def _check_job_fields(what: str, options: type[Component]) -> None:
    """Refuse a job whose fields, which are given without a prefix, would hide an option of the root."""
    roots = {f.name for f in dataclasses.fields(Options)}
    for f in dataclasses.fields(options):
        if f.name in roots:
            raise UsageError(f"{what}: field '{f.name}' hides the option of that name; choose another")


class Registry:
    """All loaded plugins and their components; ``load`` is how a process gets one."""

    def __init__(self) -> None:
        self.plugins: list[Plugin] = []
        self.components: dict[tuple[str, str], Entry] = {}
        self.readers: dict[str, Reader] = {}  # of weights, by the end of a file's name

    @classmethod
    def load(cls) -> Registry:
        """Load every installed plugin that ``ENGINE_PLUGINS`` (a comma-separated list; unset: all) allows."""
        registry = cls()
        allowed = os.environ.get("ENGINE_PLUGINS")
        names = None if allowed is None else {name.strip() for name in allowed.split(",") if name.strip()}
        found = sorted(set(entry_points(group="engine")), key=lambda e: (_distribution(e)[0] != DISTRIBUTION, e.name))
        if names is not None:
            for name in names - {e.name for e in found}:
                raise UsageError(f"ENGINE_PLUGINS names '{name}'{did_you_mean(name, [e.name for e in found])}")
        for entry_point in found:
            distribution, version = _distribution(entry_point)
            if distribution != DISTRIBUTION and names is not None and entry_point.name not in names:
                continue
            try:
                registry._require_new_name(entry_point.name, distribution)
                supplied = registry.register(entry_point.name, entry_point.load())
                plugin = Plugin(entry_point.name, distribution, version, supplied)
            except (Exception, SystemExit) as error:  # foreign code: whatever it raises is told, and the rest goes on
                reason = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
                plugin = Plugin(entry_point.name, distribution, version, error=" ".join(reason.split()))
            registry.plugins.append(plugin)
        return registry

    def _require_new_name(self, name: str, distribution: str) -> None:
        for plugin in self.plugins:
            if plugin.name == name:  # messages name the plugin a component is from, so two must not share a name
                raise UsageError(
                    f"plugin '{name}' of {distribution}: {plugin.distribution} has one of that name; rename one or "
                    "uninstall the other"
                )

    def register(self, name: str, plugin: ModuleType | object) -> tuple[tuple[str, str], ...]:
        """Add one plugin's components, all or none; return their (group, name) pairs.

        Raises UsageError for a mistake in the plugin: an unknown hook, wrong arguments, a bad component.
        """
        manager = pluggy.PluginManager("engine")
        manager.add_hookspecs(hookspecs)
        try:
            manager.register(plugin, name)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise UsageError(hook_mistake(name, error)) from error
        for caller in manager.get_hookcallers(plugin) or []:
            if caller.name != "engine_options":
                raise UsageError(
                    f"plugin '{name}': {caller.name} at module level would act on every run; put it on the object "
                    "that an Observer's build() returns"
                )
        store = Store(name, self.components, self.readers)
        trace(manager)
        manager.hook.engine_options(store=store)
        self.components.update(store.added)
        self.readers.update(store.added_readers)
        return tuple(store.added)

    def names(self, group: str) -> list[str]:
        """Return the choices of a group, sorted."""
        return sorted(name for g, name in self.components if g == group)

    def entry(self, group: str, name: str) -> Entry:
        """Return a component; raises UsageError with the nearest name and any broken plugin."""
        if (group, name) not in self.components:
            raise UsageError(f"{group}={name}: no such {group}{did_you_mean(name, self.names(group))}{self.broken()}")
        return self.components[group, name]

    def broken(self) -> str:
        """Return a remark naming plugins that failed to load, empty if none did."""
        failed = [f"{p.name} ({p.error})" for p in self.plugins if p.error]
        return f" [not loaded: {'; '.join(failed)}]" if failed else ""


def hook_mistake(name: str, error: pluggy.PluginValidationError) -> str:
    """Return pluggy's complaint as one line that names the plugin and the nearest hook."""
    text = " ".join(str(error).split())
    hooks = [hook for hook, spec in vars(hookspecs).items() if hasattr(spec, "engine_spec")]
    unknown = re.search(r"unknown hook '(\w+)'", text)
    if unknown:
        return f"plugin '{name}': no hook is called '{unknown[1]}'{did_you_mean(unknown[1], hooks)}"
    arguments = re.search(r"hook '(\w+)'.*Argument\(s\) (\{.*?\})", text)
    if arguments:
        spec = ", ".join(inspect.signature(getattr(hookspecs, arguments[1])).parameters)
        return f"plugin '{name}': {arguments[1]} has no argument {arguments[2]}; it offers: {spec}"
    return f"plugin '{name}': {text}"


def observers(named: Mapping[str, Any]) -> pluggy.HookRelay:
    """Return the hooks, which call the observers in the order given (pluggy alone would reverse it).

    Raises UsageError for a hook that does not exist or asks for an argument its specification lacks.
    """
    manager = pluggy.PluginManager("engine")
    manager.add_hookspecs(hookspecs)
    for name, observer in reversed(list(named.items())):
        try:
            manager.register(observer, name)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise UsageError(hook_mistake(name, error)) from error
    trace(manager)
    return manager.hook


def bind(hooks: pluggy.HookRelay, hook: str) -> tuple[Any, ...]:
    """Return a hook's implementations as functions that take all of its arguments, by position.

    Calling them costs a fraction of pluggy's own call (about 0.05 against 1 microsecond). Wrappers are
    refused: UsageError.
    """
    caller = getattr(hooks, hook)
    arguments = tuple(caller.spec.argnames)
    bound = []
    for implementation in reversed(caller.get_hookimpls()):
        if implementation.wrapper or implementation.hookwrapper:
            raise UsageError(f"observer '{implementation.plugin_name}': {hook} is called every step, so it cannot wrap")
        function = _adapt(implementation.function, tuple(implementation.argnames), arguments)
        if os.environ.get("ENGINE_TRACE") == "1":
            function = _traced(function, f"{hook} -> {implementation.plugin_name}")
        bound.append(function)
    return tuple(bound)


def _adapt(function: Any, wanted: tuple[str, ...], offered: tuple[str, ...]) -> Any:
    if wanted == offered:
        return function
    places = [offered.index(name) for name in wanted]
    return lambda *values: function(*(values[place] for place in places))


def _traced(function: Any, label: str) -> Any:
    def call(*values: Any) -> Any:
        _say(label)
        return function(*values)

    return call


def trace(manager: pluggy.PluginManager) -> None:
    """With ENGINE_TRACE=1, print each hook call and the plugins that answer it to stderr."""
    if os.environ.get("ENGINE_TRACE") == "1":
        manager.add_hookcall_monitoring(
            before=lambda hook, implementations, arguments: _say(
                f"{hook} -> {', '.join(i.plugin_name for i in reversed(implementations)) or 'nobody'}"
            ),
            after=lambda outcome, hook, implementations, arguments: None,
        )


def _say(text: str) -> None:
    import sys

    print(f"engine trace: {text}", file=sys.stderr)


def _distribution(entry_point: EntryPoint) -> tuple[str, str]:
    return (entry_point.dist.name, entry_point.dist.version) if entry_point.dist else ("unknown", "unknown")
