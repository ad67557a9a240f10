"""Plugins are found, told apart and allowed; a broken one is named with its error while the rest works."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from engine import Augment, Job, UsageError, hookimpl
from engine.registry import Registry

WORKING = '''
    from dataclasses import dataclass
    from engine import Augment, hookimpl, option

    @dataclass
    class Blur(Augment):
        """Make images less sharp.

        And more words.
        """
        radius: float = option(1.0, "in pixels", above=0)

    @hookimpl
    def engine_options(store):
        store.add("augment", "{name}", Blur)
'''


def plugin_named(registry, name):
    return next(plugin for plugin in registry.plugins if plugin.name == name)


def test_an_installed_plugin_is_found_with_distribution_and_version(install):
    install("blurring", WORKING.format(name="blur"), distribution="third-party")
    registry = Registry.load()
    plugin = plugin_named(registry, "blurring")
    assert (plugin.distribution, plugin.version, plugin.error) == ("third-party", "1.2", "")
    assert plugin.supplies == (("augment", "blur"),)
    entry = registry.entry("augment", "blur")
    assert (entry.plugin, entry.summary) == ("blurring", "Make images less sharp.")
    assert "blur" in registry.names("augment")
    assert "flip" in registry.names("augment")


def test_built_ins_come_first_and_are_found_the_same_way(install):
    install("aardvark", WORKING.format(name="blur"))
    distributions = [plugin.distribution for plugin in Registry.load().plugins]
    assert distributions[-1] == "aardvark"
    assert set(distributions[:-1]) == {"conv-engine"}


BROKEN = {
    "import error": (
        "import a_package_that_is_not_there",
        "ModuleNotFoundError: No module named 'a_package_that_is_not_there'",
    ),
    "syntax error": ("def engine_options(store:", r"SyntaxError: '\(' was never closed"),
    "raises when asked": (
        """
        from engine import hookimpl

        @hookimpl
        def engine_options(store):
            raise RuntimeError("first line\\nsecond line")
        """,
        "RuntimeError: first line second line",
    ),
    "hook that does not exist": (
        """
        from engine import hookimpl

        @hookimpl
        def engine_option(store): ...
        """,
        r"plugin 'broken': no hook is called 'engine_option'; did you mean 'engine_options'\?",
    ),
    "argument that does not exist": (
        """
        from engine import hookimpl

        @hookimpl
        def engine_options(stores): ...
        """,
        "plugin 'broken': engine_options has no argument {'stores'}; it offers: store",
    ),
    "observes every run": (
        """
        from engine import hookimpl

        @hookimpl
        def on_step_end(run): ...
        """,
        "plugin 'broken': on_step_end at module level would act on every run; put it on the object",
    ),
}


@pytest.mark.parametrize(("code", "error"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_named_and_the_rest_works(install, code, error):
    install("broken", code)
    install("blurring", WORKING.format(name="blur"))
    registry = Registry.load()
    plugin = plugin_named(registry, "broken")
    assert plugin.supplies == ()
    assert re.match(error, plugin.error), plugin.error
    assert "\n" not in plugin.error
    assert "blur" in registry.names("augment")
    assert "lenet" in registry.names("model")


def test_an_entry_point_without_a_module_is_named(install):
    install("ghost", target="no_such_module")
    assert plugin_named(Registry.load(), "ghost").error == "ModuleNotFoundError: No module named 'no_such_module'"


def test_asking_for_what_is_missing_tells_of_broken_plugins(install):
    install("broken", "1 / 0")
    with pytest.raises(UsageError) as error:
        Registry.load().entry("augment", "flop")
    assert str(error.value) == (
        "augment=flop: no such augment; did you mean 'flip'? [not loaded: broken (ZeroDivisionError: division by zero)]"
    )


def test_two_plugins_with_one_name_are_told_who_owns_it(install):
    install("first", WORKING.format(name="blur"))
    install("second", WORKING.format(name="blur"))
    registry = Registry.load()
    assert plugin_named(registry, "second").error == (
        "augment=blur of plugin 'second': the name is taken by plugin 'first'; rename one or uninstall the other"
    )
    assert registry.entry("augment", "blur").plugin == "first"


def test_no_plugin_can_take_a_built_in_name(install):
    install("aardvark", WORKING.format(name="flip"))
    registry = Registry.load()
    assert "taken by plugin 'augment'" in plugin_named(registry, "aardvark").error
    assert registry.entry("augment", "flip").plugin == "augment"


def test_a_plugin_with_one_bad_component_supplies_none(install):
    install("half", WORKING.format(name="blur") + '        store.add("augment", "flip", Blur)\n')
    registry = Registry.load()
    assert plugin_named(registry, "half").supplies == ()
    assert "blur" not in registry.names("augment")


def registering(group, name, options):
    class Plugin:
        @hookimpl
        def engine_options(self, store):
            store.add(group, name, options)

    return Plugin()


def documented(base, **fields):
    from dataclasses import make_dataclass

    made = make_dataclass("Made", [(key, type(value), value) for key, value in fields.items()], bases=(base,))
    made.__doc__ = "Made for a test."
    return made


class Undecorated(Augment):
    """Has a docstring, but is no dataclass of its own."""


undocumented = documented(Augment)
undocumented.__doc__ = None


@pytest.mark.parametrize(
    ("group", "name", "options", "error"),
    [
        ("augmentation", "blur", documented(Augment), "no such group; did you mean 'augment'?"),
        ("augment", "Blur", documented(Augment), "a name is lower-case letters, digits and underscores"),
        ("augment", "no-blur", documented(Augment), "a name is lower-case letters, digits and underscores"),
        ("augment", "blur", documented(Job), "must be a subclass of engine.Augment, not <class"),
        ("augment", "blur", documented(Augment)(), "must be a subclass of engine.Augment, not Made("),
        ("augment", "blur", Undecorated, "Undecorated must be decorated with @dataclass"),
        ("augment", "blur", undocumented, "Made needs a docstring; --help prints its first line"),
        ("job", "blur", documented(Job, model="x"), "field 'model' hides the option of that name; choose another"),
        ("job", "blur", documented(Job, resume="x"), "field 'resume' hides the option of that name; choose another"),
    ],
)
def test_a_bad_component_is_refused(group, name, options, error):
    with pytest.raises(UsageError) as raised:
        Registry().register("mine", registering(group, name, options))
    assert str(raised.value).startswith(f"{group}={name} of plugin 'mine': {error}")


def test_a_dataclass_without_a_docstring_of_its_own_is_refused():
    """dataclass() writes a signature into __doc__ where there is none."""
    from dataclasses import make_dataclass

    with pytest.raises(UsageError, match="Bare needs a docstring"):
        Registry().register("mine", registering("augment", "blur", make_dataclass("Bare", [], bases=(Augment,))))


@pytest.mark.parametrize(
    ("allowed", "loaded"),
    [(None, {"first", "second"}), ("second", {"second"}), (" first , second ", {"first", "second"}), ("", set())],
)
def test_engine_plugins_allows(install, monkeypatch, allowed, loaded):
    install("first", WORKING.format(name="one"))
    install("second", WORKING.format(name="two"))
    if allowed is None:
        monkeypatch.delenv("ENGINE_PLUGINS", raising=False)
    else:
        monkeypatch.setenv("ENGINE_PLUGINS", allowed)
    registry = Registry.load()
    assert {plugin.name for plugin in registry.plugins} & {"first", "second"} == loaded
    assert "flip" in registry.names("augment"), "the engine's own plugins are always loaded"


def test_a_plugin_that_is_not_allowed_is_not_even_imported(install, monkeypatch):
    install("first", WORKING.format(name="one"))
    install("second", "import os; os.environ['SECOND_WAS_IMPORTED'] = '1'")
    monkeypatch.setenv("ENGINE_PLUGINS", "first")
    monkeypatch.delenv("SECOND_WAS_IMPORTED", raising=False)
    assert "one" in Registry.load().names("augment")
    assert "SECOND_WAS_IMPORTED" not in os.environ


def test_a_plugin_that_exits_when_imported_is_named_and_the_rest_works(install):
    install("leaving", "import sys; sys.exit(3)")
    registry = Registry.load()
    assert "leaving (SystemExit: 3)" in registry.broken()
    assert "flip" in registry.names("augment")


def test_engine_plugins_with_an_unknown_name_is_refused(install, monkeypatch):
    install("blurring", WORKING.format(name="blur"))
    monkeypatch.setenv("ENGINE_PLUGINS", "bluring")
    with pytest.raises(UsageError, match=r"^ENGINE_PLUGINS names 'bluring'; did you mean 'blurring'\?$"):
        Registry.load()


def test_engine_trace_tells_which_plugin_is_asked_for_its_options(install, monkeypatch, capsys):
    install("blurring", WORKING.format(name="blur"))
    monkeypatch.setenv("ENGINE_TRACE", "1")
    Registry.load()
    lines = capsys.readouterr().err.splitlines()
    assert "engine trace: engine_options -> blurring" in lines
    assert "engine trace: engine_options -> augment" in lines


def test_loading_imports_nothing_heavy():
    code = """if True:
        import sys
        from engine.registry import Registry
        plugins = Registry.load().plugins
        assert len(plugins) > 5
        print(*sorted({"torch", "numpy", "PIL", "sklearn", "hydra", "tensorboard", "tqdm"} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_two_plugins_of_one_name_are_told_apart_by_their_distributions(install):
    install("data", WORKING.format(name="blur"), distribution="otherlib")
    registry = Registry.load()
    (refused,) = [plugin for plugin in registry.plugins if plugin.error]
    assert refused.error == (
        "plugin 'data' of otherlib: conv-engine has one of that name; rename one or uninstall the other"
    )
    assert "blur" not in registry.names("augment")
    assert "digits" in registry.names("data")
