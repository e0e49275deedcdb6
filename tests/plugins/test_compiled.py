"""Templates that are compiled once come out as if they had been compiled each time."""

import pytest

from churten import compat

if compat.core_version() < (2, 19):
    pytest.skip("earlier lines have another engine", allow_module_level=True)

import jinja2
from ansible._internal._datatag._tags import Origin, TrustedAsTemplate
from ansible._internal._templating import _jinja_bits
from ansible._internal._templating._engine import TemplateEngine, TemplateOptions
from ansible._internal._templating._jinja_bits import AnsibleEnvironment, TemplateOverrides, _TemplateCompileContext
from ansible.module_utils._internal._datatag import AnsibleTagHelper
from ansible.parsing.dataloader import DataLoader
from ansible.plugins import loader
from jinja2 import pass_context
from test_templating import everything

from churten.compat import compiled

VARIABLES = {"x": "ex", "n": 3, "many": [3, 1, 2], "d": {"a": {"b": "c"}}, "inner": TrustedAsTemplate().tag("{{ x }}{{ n }}")}
TEXTS = (
    "{{ x }}",
    "a {{ x }}\n{% for i in many | sort %}\n  {{ i }} {{ loop.index }}\n{% endfor %}\n",
    "{% if n is divisibleby 3 and x is match('e') %}yes{% else %}no{% endif %}",
    "{{ d.a.b ~ '\\n' }}{{ '\\\\' }}{{ '\\t' | length }}",
    "{{ '{{ x }}' }}",
    "{{ inner }}",
    "{{ [x, n] }}",
    "{% set y = x | upper %}{{ y }}{% raw %}{{ z }}{% endraw %}{# no #}",
    "{% macro m(a) %}<{{ a }}>{% endmacro %}{{ m(x) }}{{ m(n) }}",
    "{{ missing }}",
    "{{ missing | default('there') }}",
    "{{ x | no_such_filter }}",
    "{{ x is no_such_test }}",
    "{{ x if true else (x | no_such_filter) }}",
    "{{ x",
    "{% for %}",
    "{{ 1 / 0 }}",
    "{{ lookup('vars', 'x') }}{{ query('vars', 'x', 'n') }}",
    "<% if x %>[[ x ]]<% endif %>",
    "#jinja2: variable_start_string:'[[', variable_end_string:']]'\n[[ x ]]{{ x }}",
    "{{ x }}\n\n",
    "ä {{ x }} \U0001f600",
    "{{ x | b64encode | b64decode }} {{ many | map('int') | list | to_json }}",
    "{{ none }}",
    "",
)
EXPRESSIONS = (
    *("x", "x == 'ex'", "n > 2 and x", "missing", "x is defined", "missing is defined", "'{{ x }}' == 'ex'", "x |"),
    *("{{ x }}", "many | sum", "'a\\nb'", "n | no_such"),
)
SETTINGS = (
    {},
    {"trim_blocks": False},
    {"lstrip_blocks": True},
    {"newline_sequence": "\r\n"},
    {"variable_start_string": "[[", "variable_end_string": "]]"},
    {"block_start_string": "<%", "block_end_string": "%>"},
    {"comment_start_string": "{{#", "comment_end_string": "#}}"},
)


def chain(error, depth=0):
    """The error, and what is behind it."""
    if error is None or depth > 5:
        return []
    return [type(error), str(error), error.__suppress_context__, chain(error.__cause__, depth + 1), chain(error.__context__, depth + 1)]


def outcome(function):
    try:
        value = function()
    except Exception as ex:
        return chain(ex)
    return type(value), repr(value), dict(getattr(value, "_ansible_tags_mapping", None) or {})


def rendered():
    """Of all texts with all settings; of all expressions."""
    for settings in SETTINGS:
        for text in TEXTS:
            for escapes in (True, False):
                engine = TemplateEngine(loader=DataLoader(), variables=VARIABLES)
                options = TemplateOptions(escape_backslashes=escapes, overrides=TemplateOverrides.from_kwargs(settings))
                value = AnsibleTagHelper.tag(text, [Origin(path="/t.j2", line_num=len(settings) + 1, col_num=1), TrustedAsTemplate()])
                yield text, settings, escapes, outcome(lambda engine=engine, value=value, options=options: engine.template(value, options=options))
    for text in EXPRESSIONS:
        engine = TemplateEngine(loader=DataLoader(), variables=VARIABLES)
        value = AnsibleTagHelper.tag(text, [TrustedAsTemplate()])
        yield text, "evaluate", None, outcome(lambda engine=engine, value=value: engine.evaluate_expression(value))
        yield text, "condition", None, outcome(lambda engine=engine, value=value: engine.evaluate_conditional(value))


def test_rendered_as_by_core():
    stock = list(rendered())
    with compiled.kept_code():
        first, second = list(rendered()), list(rendered())
    assert first == stock
    assert second == stock


def test_all_ways_to_ask():
    stock = list(everything())
    with compiled.kept_code():
        assert list(everything()) == list(everything()) == stock


def test_the_code_is_what_would_be_made_again():
    """Code objects are equal if everything in them is."""
    kept = 0
    for settings in SETTINGS:
        for text in TEXTS:
            for context in (None, True, False):

                def code(settings=settings, text=text, context=context):
                    env = AnsibleEnvironment().overlay(**settings)
                    if context is None:
                        return env.compile(text)
                    with _TemplateCompileContext(escape_backslashes=context):
                        return env.compile(text)

                with compiled.kept_code():
                    try:
                        one = code()
                    except jinja2.TemplateSyntaxError:
                        continue
                    two = code()
                assert one is two
                assert one == code()
                kept += 1
    assert kept > 300


def test_it_is_core_that_renders():
    """Nothing of a rendering is kept."""
    value = TrustedAsTemplate().tag("{{ 1000000000 | random }}")
    with compiled.kept_code():
        assert len({TemplateEngine(loader=DataLoader()).template(value) for _ in range(5)}) > 1
        for x in ("a", "b"):
            assert TemplateEngine(loader=DataLoader(), variables={"x": x}).template(TrustedAsTemplate().tag("{{ x }}")) == x


def test_a_filter_that_wants_something_else():
    @pass_context
    def with_context(context, value):
        return "%s of %s" % (value, context["x"])

    value = TrustedAsTemplate().tag("{{ 3 | of_ours }}")

    def asked(function):
        engine = TemplateEngine(loader=DataLoader(), variables={"x": "ex"})
        if function is not None:
            engine.environment.filters._wrapped_funcs["of_ours"] = function
        return outcome(lambda: engine.template(value))

    with compiled.kept_code():
        found = [asked(function) for function in (lambda value: "plain", with_context, None)]
    assert found == [asked(function) for function in (lambda value: "plain", with_context, None)]
    assert [one[1] for one in found[:2]] == ["'plain'", "'3 of ex'"]


def test_what_is_not_kept(monkeypatch):
    text = "{{ '{{ x }}' }}"
    with compiled.kept_code():
        first = AnsibleEnvironment().compile(text)
        monkeypatch.setattr(_jinja_bits._TemplateConfig, "allow_embedded_templates", False)
        assert AnsibleEnvironment().compile(text) != first
        monkeypatch.setattr(_jinja_bits._TemplateConfig, "jinja_extensions", ["jinja2.ext.do"])
        assert AnsibleEnvironment().compile("{{ x }}") is not AnsibleEnvironment().compile("{{ x }}")

        class Other(AnsibleEnvironment):
            pass

        assert Other().compile("{{ x }}") is not Other().compile("{{ x }}")


def test_the_oldest_are_forgotten(monkeypatch):
    monkeypatch.setattr(compiled, "_KEPT", 3)
    with compiled.kept_code():
        codes = [AnsibleEnvironment().compile(f"{{{{ {n} }}}}") for n in range(4)]
        assert AnsibleEnvironment().compile("{{ 3 }}") is codes[3]
        assert AnsibleEnvironment().compile("{{ 0 }}") is not codes[0]


def test_filters_that_are_jinjas_own(monkeypatch):
    """Found each time as without us; a folder that brings one of their name is seen."""
    loader.init_plugin_loader()
    searched = []
    stock = loader.PluginLoader.get_with_context

    def search(self, name, *args, **kwargs):
        searched.append(name)
        return stock(self, name, *args, **kwargs)

    monkeypatch.setattr(loader.PluginLoader, "get_with_context", search)

    def ask():
        searched.clear()
        return AnsibleEnvironment().filters["batch"].__wrapped__, AnsibleEnvironment().tests["odd"].__wrapped__, bool(searched)

    expected = ask()
    assert expected[2]
    with compiled.absent_plugins():
        assert [ask() for _ in range(3)] == [expected, (*expected[:2], False), (*expected[:2], False)]
        monkeypatch.setattr(loader.filter_loader, "_cached_non_collection_wrappers", {})
        assert ask() == expected
        with pytest.raises(KeyError):
            AnsibleEnvironment().filters["no_such"]
        with pytest.raises(KeyError):
            AnsibleEnvironment().filters["no_such"]
        one, two = (loader.filter_loader.get_with_context("batch") for _ in range(2))
        assert vars(one.plugin_load_context) == vars(two.plugin_load_context) and one.object is two.object is None
    assert ask() == expected


def test_undone():
    stock = AnsibleEnvironment.compile, AnsibleEnvironment.compile_expression
    assert compiled.is_known()
    with compiled.kept_code():
        assert AnsibleEnvironment.compile is not stock[0]
    assert (AnsibleEnvironment.compile, AnsibleEnvironment.compile_expression) == stock
    assert "compile" not in vars(AnsibleEnvironment)
