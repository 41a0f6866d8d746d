import json

import pytest
from pydantic import ValidationError

from hwnas import Genotype
from hwnas.errors import GenotypeError

GENOTYPE = Genotype(space="chain", fields={"size": 32}, choices={"a": "k1", "b": "k3"})


def test_it_survives_a_file(tmp_path):
    path = tmp_path / "run" / "net.json"
    GENOTYPE.save(path)
    assert Genotype.load(path) == GENOTYPE
    assert path.stat().st_size < 300
    assert [entry.name for entry in path.parent.iterdir()] == ["net.json"]


def test_the_short_id_depends_on_the_architecture_alone():
    turned = Genotype(space="chain", fields={"size": 32}, choices={"b": "k3", "a": "k1"})
    assert turned.short_id == GENOTYPE.short_id
    assert len(GENOTYPE.short_id) == 8
    others = [
        GENOTYPE.model_copy(update={"choices": {"a": "k1", "b": "k1"}}),
        GENOTYPE.model_copy(update={"choices": {"a": "k1"}}),
        GENOTYPE.model_copy(update={"fields": {"size": 64}}),
        GENOTYPE.model_copy(update={"space": "other"}),
    ]
    assert len({genotype.short_id for genotype in (GENOTYPE, *others)}) == 5


def test_it_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        GENOTYPE.space = "other"


def test_a_missing_file_says_what_makes_one(tmp_path):
    with pytest.raises(
        GenotypeError, match=r"no genotype at .*net\.json; a search writes one:  hwnas search"
    ):
        Genotype.load(tmp_path / "net.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"schema_version": 1}',
        '{"schema_version": "x"}',
        '{"schema_version": null}',
    ],
)
def test_a_file_that_is_no_genotype_is_refused(tmp_path, text):
    path = tmp_path / "net.json"
    path.write_text(text)
    with pytest.raises(GenotypeError, match=r"net\.json is not a genotype"):
        Genotype.load(path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "net.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(GenotypeError, match="is not a genotype"):
        Genotype.load(path)


def test_a_newer_schema_is_refused(tmp_path):
    path = tmp_path / "net.json"
    path.write_text(json.dumps({**GENOTYPE.model_dump(), "schema_version": 99}))
    with pytest.raises(GenotypeError, match="genotype schema 99, this hwnas reads up to 1: upgrade hwnas"):
        Genotype.load(path)


def test_unknown_entries_are_refused(tmp_path):
    path = tmp_path / "net.json"
    path.write_text(json.dumps({**GENOTYPE.model_dump(), "run": "me"}))
    with pytest.raises(GenotypeError, match="Extra inputs are not permitted"):
        Genotype.load(path)
