"""Values without a template, past core's template engine (2.19 and later) while one of our strategies runs.

Core templates some twenty values for each task and host: keywords, connection options, parameters. Nearly all are plain texts or empty lists, for which its
engine opens three contexts and gives back what it got. What it would do with them is known beforehand:

- a text without a brace, that does not begin as templates with options of their own do, is no template: it comes back, as the same object;
- an empty list or dict comes back as a new one, unless one value is templated inside another (then core makes it lazy).

Everything else is core's, and all of it if core's functions do not look as they are known to.
"""

from __future__ import annotations

import contextlib
import typing as t

from ansible._internal._templating import _engine, _jinja_bits
from ansible._internal._templating._utils import TemplateContext
from ansible.module_utils._internal._datatag import _AnsibleTaggedStr

_DEFAULT = _engine.TemplateOptions.DEFAULT
_PLAIN_OVERRIDES = _jinja_bits.TemplateOverrides.DEFAULT
_EMPTY = (list, dict)

# The names that core's functions use, as far as they are stood for here.
_TEMPLATE = frozenset(
    "ALWAYS_FINALIZE AnsibleTemplateTransformLimitError DeprecatedAccessAuditContext Exception IGNORE_SCALAR_VAR_TYPES JinjaCallContext STOP_ON_CONTAINER "
    "STOP_ON_TEMPLATE TRANSFORM_CHAIN_LIMIT TemplateContext TemplateEncountered TemplateMode _AnsibleLazyTemplateMixin __name__ _compile_template "
    "_finalize_top_level_template_result _post_render_mutation _trust_check _try_create _type_transform_mapping available_variables current "
    "defer_template_error get is_possibly_template is_top_level isinstance overrides range stop_on_template str template type unmask_type_names when".split()
)
_KNOWN: tuple[tuple[t.Any, tuple[frozenset[str], ...]], ...] = (
    (_engine.TemplateEngine.template, (_TEMPLATE, _TEMPLATE | {"TemplateExpressionWrapper", "_compile_expression", "expression"})),  # from 2.21
    (_jinja_bits.is_possibly_template, (frozenset({"startswith", "JINJA2_OVERRIDE", "_contains_start_string"}),)),
    (
        _jinja_bits.TemplateOverrides._contains_start_string,
        (frozenset({"block_start_string", "variable_start_string", "comment_start_string"}),),
    ),
    (
        _engine.TemplateEngine._finalize_top_level_template_result,
        (
            frozenset(
                "AnsibleTaggedObject AnsibleValueOmittedError AttributeError Exception ExceptionMarker FinalizeMode MarkerError Omit TOP_LEVEL "
                "TemplateEncountered __cause__ _as_exception _collection_types _finalize_template_result _non_lazy_copy create_template_error isinstance "
                "source type value_for_omit".split()
            ),
        ),
    ),
    (
        _jinja_bits._finalize_template_result,
        (
            frozenset(
                "type _AnsibleTaggedStr _JinjaConstTemplate untag PASS_THROUGH_SCALAR_VAR_TYPES _FINALIZE_FAST_PATH_EXACT_MAPPING_TYPES _finalize_collection "
                "_finalize_dict dict _FINALIZE_FAST_PATH_EXACT_ITERABLE_TYPES _finalize_list list Marker _concrete_subclasses TemplateContext current templar "
                "marker_behavior handle_marker FinalizeMode TOP_LEVEL _FINALIZE_DISALLOWED_EXACT_TYPES AnsibleVariableTypeError from_value _internal "
                "is_intermediate_mapping _finalize_fallback_collection is_intermediate_iterable _maybe_finalize_scalar".split()
            ),
        ),
    ),
)


def is_known() -> bool:
    """Whether the running core's engine is one of those that are stood for."""
    starts = (_PLAIN_OVERRIDES.block_start_string, _PLAIN_OVERRIDES.variable_start_string, _PLAIN_OVERRIDES.comment_start_string)
    transformed = set(_engine._type_transform_mapping) & {str, list, dict, _AnsibleTaggedStr}
    finalized = dict in _jinja_bits._FINALIZE_FAST_PATH_EXACT_MAPPING_TYPES and list in _jinja_bits._FINALIZE_FAST_PATH_EXACT_ITERABLE_TYPES
    alike = all(frozenset(function.__code__.co_names) in known for function, known in _KNOWN)
    header: str = _jinja_bits.JINJA2_OVERRIDE
    return alike and finalized and not transformed and all("{" in start for start in starts) and header == "#jinja2:"


@contextlib.contextmanager
def plain_templates() -> t.Iterator[None]:
    """While active, values that are no templates do not go through core's engine."""
    if not is_known():
        yield
        return
    stock: t.Any = _engine.TemplateEngine.template
    default, stop_on_template = _engine.TemplateMode.DEFAULT, _engine.TemplateMode.STOP_ON_TEMPLATE
    const: t.Any = _jinja_bits._JinjaConstTemplate  # a tag that the engine takes off

    def template(
        self: t.Any, variable: t.Any, *, options: t.Any = _DEFAULT, mode: t.Any = default, lazy_options: t.Any = _engine.LazyOptions.DEFAULT
    ) -> t.Any:
        kind = type(variable)
        if kind is str or kind is _AnsibleTaggedStr:
            no_template = "{" not in variable and variable[:1] != "#" and options.overrides is _PLAIN_OVERRIDES
            if no_template and (kind is str or const not in variable._ansible_tags_mapping):
                return variable
        elif kind in _EMPTY and not variable and mode is not stop_on_template and TemplateContext.current(optional=True) is None:
            return kind()
        return stock(self, variable, options=options, mode=mode, lazy_options=lazy_options)

    _engine.TemplateEngine.template = template  # type: ignore[method-assign]
    try:
        yield
    finally:
        _engine.TemplateEngine.template = stock  # type: ignore[method-assign]
