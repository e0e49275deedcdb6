"""Values without a template come out as from core's engine, whether they go through it or not."""

import pytest

from churten import compat

if compat.core_version() < (2, 19):
    pytest.skip("earlier lines have another engine", allow_module_level=True)

from ansible._internal._datatag._tags import Origin, TrustedAsTemplate
from ansible._internal._templating import _engine, _jinja_bits
from ansible._internal._templating._engine import TemplateEngine, TemplateMode, TemplateOptions
from ansible.module_utils._internal._datatag import AnsibleTagHelper
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

from churten.compat import templating

ORIGIN = Origin(path="/a/play.yml", line_num=3, col_num=4)
TEXTS = (
    *("", "plain", "a } b", "{", "{ {", "{{ x }}", "{% if x %}y{% endif %}", "{# no #}z", "{{ missing }}"),
    *("#jinja2: variable_start_string:'[['\n[[ x ]]", "#", "a\n\n", "{{"),
)


def tagged(value):
    yield value
    yield AnsibleTagHelper.tag(value, [ORIGIN])
    yield AnsibleTagHelper.tag(value, [ORIGIN, TrustedAsTemplate()])
    if isinstance(value, str):
        yield AnsibleTagHelper.tag(value, [ORIGIN, _jinja_bits._JinjaConstTemplate()])


VALUES = [one for text in TEXTS for one in tagged(text)] + [
    *(one for value in ([], {}, ["{{ x }}"], {"a": []}, [[]], ()) for one in tagged(value)),
    *(None, True, 5, 1.5, b"x", set(), object()),
]
OPTIONS = (TemplateOptions.DEFAULT, TemplateOptions(value_for_omit=None), TemplateOptions(escape_backslashes=False, preserve_trailing_newlines=False))


def outcome(function, source):
    try:
        value = function()
    except Exception as ex:
        return type(ex), str(ex)
    tags = getattr(value, "_ansible_tags_mapping", None)
    return type(value), None if type(value) is object else repr(value), dict(tags) if tags else None, value is source


def everything():
    """What comes of all values, in all ways they can be asked for."""
    engine = TemplateEngine(loader=DataLoader(), variables={"x": "ex", "plain": TrustedAsTemplate().tag("{{ x }}"), "empty": [], "n": "y"})
    old = Templar(loader=DataLoader(), variables={"x": "ex"})
    for value in VALUES:
        for mode in TemplateMode:
            for options in OPTIONS:
                yield value, mode, options, outcome(lambda value=value, mode=mode, options=options: engine.template(value, mode=mode, options=options), value)
        yield value, "transform", None, outcome(lambda value=value: engine.transform(value), value)
        yield value, "is", None, outcome(lambda value=value: engine.is_template(value), value)
        yield value, "old", None, outcome(lambda value=value: old.template(value), value)
        yield value, "overrides", None, outcome(lambda value=value: old.template(value, overrides={"variable_start_string": "p"}), value)
    for inner in ("{{ empty }}", "{{ [plain, empty, n] }}", "{{ lookup('vars', 'n') }}", "{{ lookup('vars', 'empty') + [n] }}", "{{ query('list', n) }}"):
        yield inner, "inner", None, outcome(lambda inner=inner: engine.template(TrustedAsTemplate().tag(inner)), inner)


def test_core_is_known():
    """On every supported line it is in use."""
    assert templating.is_known()
    stock = TemplateEngine.template
    with templating.plain_templates():
        assert TemplateEngine.template is not stock
    assert TemplateEngine.template is stock


def test_the_same_as_core():
    stock = list(everything())
    with templating.plain_templates():
        ours = list(everything())
    assert len(stock) > 400
    for one, two in zip(ours, stock, strict=True):
        assert one == two


def test_empty_values_are_each_time_another():
    with templating.plain_templates():
        engine = TemplateEngine(loader=DataLoader(), variables={})
        source = []
        first = engine.template(source)
        assert first == [] and first is not source and first is not engine.template(source)


def test_an_engine_that_is_not_known_is_left_alone(monkeypatch):
    stock = TemplateEngine.template
    monkeypatch.setitem(_engine._type_transform_mapping, list, lambda value: value)
    with templating.plain_templates():
        assert TemplateEngine.template is stock
