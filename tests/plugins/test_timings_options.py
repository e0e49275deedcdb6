"""The options of the callback timings stand twice: in its documentation, and for core, which then need not read it."""

import yaml
from playing import ROOT

from churten.timings import options


def test_they_are_those_of_the_documentation():
    source = (ROOT / "plugins" / "callback" / "timings.py").read_text()
    documented = yaml.safe_load(source.split('"""', 4)[3])["options"]
    for option in documented.values():
        del option["description"]
    assert options.definitions() == documented and list(options.definitions()) == list(documented)


def test_core_reads_them_there(tmp_path, monkeypatch):
    from ansible import constants as C
    from ansible.plugins.loader import callback_loader, init_plugin_loader
    from playing import collections

    monkeypatch.syspath_prepend(str(collections(tmp_path)))
    init_plugin_loader([str(tmp_path)])
    monkeypatch.setenv("CHURTEN_TIMINGS_SORT_BY", "max")
    plugin = callback_loader.get("churten.core.timings")
    plugin.set_options()
    assert plugin.get_option("sort_by") == "max" and plugin.get_option("show_recap") is True and plugin.get_option("min_seconds") == 0.0
    kept = C.config.get_configuration_definitions("callback", plugin._load_name)
    assert "description" not in kept["sort_by"], "the documentation was read"
