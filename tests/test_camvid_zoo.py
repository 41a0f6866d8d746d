"""The benchmark that makes the zoo: its recipes, and what one training serves all of them with."""

import sys
from pathlib import Path

import pytest

import hwnas.zoo
from hwnas.files import write_json
from hwnas.recipes import Recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import camvid_zoo as benchmark
import camvid_zoo_recipes as recipes
import searched_and_random


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
@pytest.mark.parametrize("name", sorted(benchmark.TARGETS_MS))
def test_a_recipe_ends_on_crops_over_rare_classes(name, scale):
    recipe = recipes.recipe_for(name, scale)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert recipe.stages[0].data == "tiny_imagenet" and recipe.stages[1].data == "idd_lite"
    assert recipe.stages[-1].augmentation.rare == recipes.RARE
    assert recipe.teacher is not None and recipe.stages[-1].unlabelled == ("idd_lite",)


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_the_zoos_networks_were_trained_by_these_recipes(name):
    card = hwnas.zoo.card(f"autortnet-{name}-camvid")
    assert Recipe.model_validate({"about": "", **card.recipe}) == recipes.recipe_for(name, "cpu").model_copy(
        update={"about": card.recipe.get("about", "")}
    )


def test_what_is_left_of_a_recipe_is_what_the_zoos_network_has_not_been_through():
    recipe = recipes.recipe_for("c", "cpu")
    *done, last = recipe.stages
    card = hwnas.zoo.card("autortnet-c-camvid")

    def of(stages, **other):
        told = recipe.model_copy(update={"stages": tuple(stages), **other})
        return card.model_copy(update={"recipe": told.model_dump(mode="json")})

    left = benchmark.still_to_do(recipe, of(done))
    assert (left.stages, left.teacher) == ((last,), recipe.teacher)
    with pytest.raises(SystemExit, match="has been through all stages"):
        benchmark.still_to_do(recipe, of(recipe.stages))
    with pytest.raises(SystemExit, match="did not begin as this recipe does"):
        benchmark.still_to_do(recipe, of(done[1:]))


def test_a_finished_teacher_is_copied_where_split_and_training_are_the_same(tmp_path):
    teacher = recipes.recipe_for("c", "cpu").teacher
    longer = teacher.model_copy(update={"fit": teacher.fit.model_copy(update={"epochs": 99})})
    for folder, said, stage in (
        ("a", "of all", teacher),
        ("a2", "for long", longer),
        ("b-train", "of train", teacher),
    ):
        (tmp_path / folder / "teacher").mkdir(parents=True)
        (tmp_path / folder / "teacher/weights.pt").write_text(said)
        write_json(tmp_path / folder / "teacher/fit.json", {"config": stage.fit.model_dump(mode="json")})
    for out, stage, said in (
        ("c", teacher, "of all"),
        ("d", longer, "for long"),
        ("a-train", teacher, "of train"),
    ):
        (tmp_path / out).mkdir()
        benchmark.take_teacher(tmp_path / out, stage)
        assert (tmp_path / out / "teacher/weights.pt").read_text() == said
    (tmp_path / "c-val").mkdir()
    benchmark.take_teacher(tmp_path / "c-val", teacher)
    assert not (tmp_path / "c-val/teacher").exists()


def test_random_networks_have_the_milliseconds_of_the_searched_one():
    table = hwnas.LatencyTable.load(searched_and_random.TABLE)
    found = searched_and_random.random_genotypes(table, 18.3, 3)
    assert len({genotype.short_id for genotype, _ in found}) == 3
    recording = benchmark.SPACE.record()
    for genotype, ms in found:
        counted = table.predict_ms(recording.count(benchmark.SPACE.assignment(genotype)))
        assert counted == ms == pytest.approx(18.3, rel=searched_and_random.NEAR)
    with pytest.raises(SystemExit, match=r"0 of 3 random architectures within 5% of 0\.10 ms"):
        searched_and_random.random_genotypes(table, 0.1, 3, most_draws=10)


def done(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "weights.pt").write_text(name)


def test_a_twin_takes_over_what_was_learnt_elsewhere_until_a_stage_differs(tmp_path):
    recipe = recipes.recipe_for("a", "cpu")
    stages = [stage.name for stage in recipe.stages]
    assert stages == ["pictures", "streets", "crops", "taught", "longer", "longer-2", "whole"]
    source = tmp_path / "a"
    done(source, "pictures", "streets", "crops")
    write_json(source / "recipe.json", recipe.model_dump(mode="json"))
    (tmp_path / "a-train").mkdir()
    benchmark.take_stages(source, tmp_path / "a-train", recipe)
    # "crops" has seen what the twin must not see.
    assert sorted(path.name for path in (tmp_path / "a-train").iterdir()) == ["pictures", "streets"]
    assert (tmp_path / "a-train" / "streets" / "weights.pt").read_text() == "streets"

    pictures, *others = recipe.stages
    longer = pictures.model_copy(update={"fit": pictures.fit.model_copy(update={"epochs": 99})})
    (tmp_path / "a-other").mkdir()
    benchmark.take_stages(
        source, tmp_path / "a-other", recipe.model_copy(update={"stages": (longer, *others)})
    )
    # "streets" began with other weights than it would.
    assert list((tmp_path / "a-other").iterdir()) == []


def test_what_was_copied_half_is_copied_anew(tmp_path):
    done(tmp_path / "a", "pictures")
    (tmp_path / "b" / "pictures.part").mkdir(parents=True)
    (tmp_path / "b" / "pictures.part" / "stale").write_text("")
    benchmark.copy_whole(tmp_path / "a" / "pictures", tmp_path / "b" / "pictures")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["pictures"]
    assert [path.name for path in (tmp_path / "b" / "pictures").iterdir()] == ["weights.pt"]


def test_a_drive_is_held_out_of_train_and_val_only(monkeypatch, capsys):
    told = ["fit", "a", "--data", "DIR", "--split", "train", "--held-out", "0006R0"]
    monkeypatch.setattr(sys, "argv", ["camvid_zoo.py", *told])
    with pytest.raises(SystemExit, match="2"):
        benchmark.main()
    assert "give no --split with it" in capsys.readouterr().err
