import json

import pytest

from hwnas.lookup import imported, meant


def test_what_a_module_calls_so():
    assert imported("json", "loads") is json.loads


@pytest.mark.parametrize(
    ("module", "attribute", "reason"),
    [
        ("json", "nosuch", "json has no nosuch"),
        ("no.such", "Class", "there is no no"),
        ("json.nosuch", "Class", "there is no json.nosuch"),
        ("a b", "Class", ""),
        ("json", "", ""),
        ("", "loads", ""),
    ],
)
def test_what_is_not_there_is_told(module, attribute, reason):
    with pytest.raises(LookupError) as caught:
        imported(module, attribute)
    assert str(caught.value) == reason


def test_what_a_module_itself_lacks_is_passed_on(tmp_path, monkeypatch):
    (tmp_path / "lacking_something.py").write_text("import no_such_package_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
        imported("lacking_something", "Class")


def test_a_misspelt_name_is_recognised():
    assert meant("camvidd", ["camvid", "folders"]) == " (did you mean camvid?)"
    assert meant("nosuch", ["camvid", "folders"]) == ""
