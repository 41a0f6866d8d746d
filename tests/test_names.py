import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import hwnas
from hwnas.core.genotype import Genotype
from hwnas.errors import GenotypeError, InvalidInput
from hwnas.latency.fake import FakeBackend
from hwnas.names import (
    _BACKENDS,
    _SPACES,
    find_backend,
    find_space,
    known_backends,
    known_spaces,
    space_of,
)
from hwnas.search_spaces.chain import Chain
from hwnas.segmentation.registry import _BUILT_IN


def test_built_in_names_are_found():
    assert all(find_space(name).name == name for name in known_spaces())
    assert all(find_backend(name).name == name for name in known_backends())


def test_the_entry_points_are_the_names_in_the_code():
    """The code's lists hold in a source tree, the entry points are for other tools."""
    project = tomllib.loads((Path(hwnas.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {
        "hwnas.search_spaces": _SPACES,
        "hwnas.latency_backends": _BACKENDS,
        "hwnas.datasets": _BUILT_IN,
    }


def test_other_packages_offer_names(monkeypatch):
    offered = EntryPoint("mine", "hwnas.search_spaces.chain:Chain", "hwnas.search_spaces")
    monkeypatch.setattr("hwnas.names.entry_points", lambda group: [offered] if "space" in group else [])
    assert find_space("mine") is Chain
    assert set(known_spaces()) == {"autortnet", "chain", "mine"}
    assert set(known_backends()) == set(_BACKENDS)


def test_a_class_is_found_by_module_and_name():
    assert find_space("hwnas.search_spaces.chain:Chain") is Chain
    assert find_backend("hwnas.latency.fake:FakeBackend") is FakeBackend


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "autortn",
            r'no search space is called "autortn" \(did you mean autortnet\?\)\. Known: autortnet, chain',
        ),
        ("no_such_module:Space", "there is no no_such_module"),
        ("hwnas.search_spaces.chain:Chian", "hwnas.search_spaces.chain has no Chian"),
        ("hwnas.latency.fake:FakeBackend", "which is not a SearchSpace"),
        (
            "hwnas:SearchSpace",
            '"hwnas:SearchSpace" is abstract: name a class that has input_shape and supernet',
        ),
    ],
)
def test_what_names_no_space_is_refused(name, message):
    with pytest.raises(InvalidInput, match=message):
        find_space(name)


class Renamed(Chain):
    name = "renamed"


def test_a_space_that_says_no_name_is_found_by_the_name_that_it_has():
    """Also where the class that it is made of has a name of its own."""

    class Local(Chain):
        pass

    assert Local.name == f"{__name__}:{Local.__qualname__}"
    assert find_space(Plain.name) is Plain
    assert space_of(Plain(depth=1).random()) == Plain(depth=1)


class Plain(Chain):
    pass


def test_a_name_that_no_file_could_find_again_is_refused(monkeypatch):
    name = f"{__name__}:Renamed"
    with pytest.raises(InvalidInput, match=f'{name} calls itself "renamed", a name by which no file'):
        find_space(name)
    offered = EntryPoint("renamed", name, "hwnas.search_spaces")
    monkeypatch.setattr("hwnas.names.entry_points", lambda group: [offered] if "space" in group else [])
    assert find_space(name) is find_space("renamed") is Renamed


def test_a_space_is_rebuilt_from_its_genotype():
    space = Chain(size=8, stages=1, depth=2)
    assert space_of(space.random()).model_dump() == space.model_dump()


def test_a_genotype_with_fields_of_another_version_is_refused():
    with pytest.raises(GenotypeError, match="the genotype's fields do not fit chain"):
        space_of(Genotype(space="chain", fields={"length": 3}, choices={}))


def test_a_genotype_from_elsewhere_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'sprung')!r}).touch()\n"
        "from hwnas.search_spaces.chain import Chain\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    genotype = Genotype(space="trap:Chain", fields=Chain().model_dump(mode="json"), choices={})
    with pytest.raises(GenotypeError, match=r"trap:Chain.* import it first, or offer its space as an entry"):
        space_of(genotype, may_import=False)
    assert not (tmp_path / "sprung").exists()
    # What the user imports, or has installed as a plug-in, the user trusts.
    offered = EntryPoint("mine", "trap:Chain", "hwnas.search_spaces")
    with monkeypatch.context() as patched:
        patched.setattr("hwnas.names.entry_points", lambda group: [offered])
        assert "mine" in known_spaces()
        assert space_of(genotype, may_import=False) == Chain()
        assert space_of(genotype.model_copy(update={"space": "mine"}), may_import=False) == Chain()
    assert space_of(genotype, may_import=False) == Chain()  # by now it is imported
    assert (tmp_path / "sprung").exists()
    del sys.modules["trap"]
