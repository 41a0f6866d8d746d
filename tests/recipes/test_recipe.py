import json

import pytest
from pydantic import ValidationError

from hwnas import FitConfig
from hwnas.errors import DataError
from hwnas.recipes import RECIPES, Recipe, Stage

TARGET = {"name": "target"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_data(name, tmp_path):
    recipe = RECIPES[name]
    path = tmp_path / "recipe.json"
    path.write_text(recipe.model_dump_json(indent=1))
    assert Recipe.load(path) == recipe
    assert recipe.about


def test_what_is_not_said_is_the_default(tmp_path):
    (tmp_path / "r.json").write_text(
        '{"about": "mine", "stages": [{"name": "target", "fit": {"epochs": 3}}]}'
    )
    (stage,) = Recipe.load(tmp_path / "r.json").stages
    assert stage == Stage(name="target", fit=FitConfig(epochs=3))
    assert stage.augmentation.scale == (0.5, 2.0)


def test_the_papers_recipe_is_the_papers():
    """Section 4 of arXiv 2003.14226: SGD with the "poly" policy, random scales and mirror images."""
    *before, target = RECIPES["paper"].stages
    assert [stage.task for stage in before] == ["classification"]
    fit = target.fit
    assert (fit.epochs, fit.lr, fit.power, fit.momentum, fit.weight_decay) == (200, 0.01, 0.9, 0.9, 5e-4)
    assert (target.batch, target.augmentation.scale, target.augmentation.flip) == (16, (0.5, 2.0), 0.5)


def test_the_data_that_are_needed_come_in_the_order_of_need():
    stages = [
        {"name": "a", "data": "x"},
        {"name": "b"},
        {"name": "c", "data": "y"},
        {"name": "d", "data": "x"},
    ]
    recipe = Recipe(about="", stages=[*stages, TARGET])
    assert recipe.other_data == ("x", "y")
    crop, fit = {"augmentation": {"crop": [8, 8]}}, {"fit": {"distillation_weight": 1}}
    seen = {**TARGET, **crop, **fit, "unlabelled": ["z", "x"]}
    assert Recipe(about="", stages=[*stages, seen]).other_data == ("x", "y", "z")


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "stages: Tuple should have at least 1 item"),
        ([TARGET, TARGET], "two stages have one name: target, target"),
        ([{"name": "a", "data": "idd_lite"}], 'must segment the "target" data, not segmentation on idd_lite'),
        ([{"name": "a", "task": "classification"}], 'must segment the "target" data, not classification'),
        ([{"name": "../up"}], r"stages.0.name: String should match pattern"),
        ([{"name": "fit"}], 'a stage cannot be called "fit": --set means something else by that'),
        ([{"name": "data"}], 'a stage cannot be called "data"'),
        ([{"name": "tensorboard"}], 'called "tensorboard": a run has another folder of that name'),
        (
            [{"name": "a", "data": "x", "auxiliary": True, "fit": {"compiled": True}}, TARGET],
            "auxiliary heads are not heard in a compiled training",
        ),
        ([{"name": "predictions"}], 'called "predictions": a run has another folder of that name'),
        (
            [{"name": "a", "data": "x", "task": "classification", "size": [64, 64]}, TARGET],
            "size means nothing to a classifier: leave it out, and set augmentation.crop",
        ),
        (
            [{"name": "a", "data": "x", "task": "classification", "class_weight_offset": 1.1}, TARGET],
            "class_weight_offset means nothing to a classifier",
        ),
        (
            [{"name": "a", "data": "x", "task": "classification", "auxiliary": True}, TARGET],
            "auxiliary means nothing to a classifier",
        ),
        (
            [{"name": "a", "data": "x", "task": "classification", "augmentation": {"hue": 0.2}}, TARGET],
            "augmentation.hue means nothing to a classifier, which only crops (augmentation.crop, "
            "least_share) and mirrors (augmentation.flip): leave it out",
        ),
        ([{**TARGET, "augmentation": {"rare_share": 0.3}}], "rare_share is 0.3, and rare names no class to"),
        ([{**TARGET, "epochs": 3}], "stages.0.epochs: Extra inputs are not permitted (got 3)"),
        (
            [{**TARGET, "augmentation": {"zoom": 2}}],
            "stages.0.augmentation.zoom: Unexpected keyword argument",
        ),
        ([{**TARGET, "augmentation": {"scale": [2, 1]}}], "0 < least <= largest; got (2.0, 1.0)"),
        (
            [{**TARGET, "class_weight_offset": 1}],
            "stages.0.class_weight_offset: Input should be greater than 1",
        ),
        ([{**TARGET, "fit": {"lr": -1}}], "stages.0.fit.lr: Input should be greater than 0"),
        (
            [{"name": "a", "data": "x", "fit": {"distillation_weight": 1}}, TARGET],
            'a teacher (distillation_weight) can only teach to segment the "target" data',
        ),
        ([{**TARGET, "least_share": 0.2}], "least_share (0.2) means nothing to a segmentation"),
        (
            [{**TARGET, "soft_targets": {"scales": [1, 2]}}],
            "soft_targets are a teacher's, and none teaches here (fit.distillation_weight is 0)",
        ),
        (
            [{**TARGET, "soft_targets": {"scales": [0]}, "fit": {"distillation_weight": 1}}],
            "stages.0.soft_targets.scales.0: Input should be greater than 0",
        ),
        (
            [{**TARGET, "unlabelled_size": [8, 8]}],
            "unlabelled_size means nothing where unlabelled names no data set",
        ),
        (
            [{**TARGET, "unlabelled": ["x"]}],
            "nothing is to be learnt from x without labels where no teacher teaches",
        ),
        (
            [{**TARGET, "unlabelled": ["target"], "fit": {"distillation_weight": 1}}],
            "unlabelled names other data sets than the target, each once; got target",
        ),
        (
            [{**TARGET, "unlabelled": ["x", "x"], "fit": {"distillation_weight": 1}}],
            "unlabelled names other data sets than the target, each once; got x, x",
        ),
        (
            [{**TARGET, "unlabelled": ["x"], "fit": {"distillation_weight": 1}}],
            "images of several data sets must come out in one size: set augmentation.crop",
        ),
    ],
)
def test_a_file_that_is_no_recipe_says_why(stages, message, tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"about": "", "stages": stages}))
    with pytest.raises(DataError) as caught:
        Recipe.load(path)
    assert str(caught.value).startswith(f"{path} is not a recipe:")
    if message.startswith("stages.0.name"):
        assert "should match pattern" in str(caught.value)
    else:
        assert message in str(caught.value)


def test_a_file_that_is_not_there_or_not_json(tmp_path):
    with pytest.raises(DataError, match="no recipe at"):
        Recipe.load(tmp_path / "nosuch.json")
    (tmp_path / "r.json").write_text("{")
    with pytest.raises(DataError, match="is not a recipe"):
        Recipe.load(tmp_path / "r.json")


def teaching(teacher, weight=1.0):
    return {"about": "", "stages": [{**TARGET, "fit": {"distillation_weight": weight}}], "teacher": teacher}


def test_a_teacher_comes_first():
    recipe = Recipe(**teaching({"fit": {"epochs": 7}}))
    assert [stage.name for stage in recipe.all_stages] == ["teacher", "target"]
    assert recipe.teacher.fit.epochs == 7
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert RECIPES["cpu"].all_stages == RECIPES["cpu"].stages


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (teaching({}, 0.0), "and target does not learn from it (fit.distillation_weight is 0)"),
        (teaching({"auxiliary": True}), "no auxiliary heads, and no teacher of its own"),
        (teaching({"fit": {"distillation_weight": 1}}), "no auxiliary heads, and no teacher of its own"),
        (
            teaching({"data": "idd_lite"}),
            'a teacher segments the "target" data, not',
        ),
        (teaching({"network": "other"}), "Input should be 'efficientnet-lite2'"),
        (teaching({"name": "other"}), "String should match pattern"),
    ],
)
def test_a_teacher_that_cannot_be(values, message):
    with pytest.raises(ValidationError) as caught:
        Recipe(**values)
    assert message in str(caught.value)


def test_recipes_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        RECIPES["cpu"].stages[0].fit.lr = 1.0
