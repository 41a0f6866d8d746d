"""Training by a recipe, as a user types it."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from hwnas import zoo
from hwnas.cli.app import EXIT_ERROR
from hwnas.cli.data import DataChoice
from hwnas.cli.folder import RunFolder, RunSetup
from hwnas.core.genotype import Genotype
from hwnas.core.weights import digest
from hwnas.files import read_json
from hwnas.recipes import RECIPES, Recipe
from tests.cli.conftest import hwnas, said, settings

TWO = {
    "about": "other classes, then the target",
    "stages": [
        {"name": "before", "data": "folders", "size": [32, 64], "batch": 2, "auxiliary": True,
         "fit": {"epochs": 1, "device": "cpu"}},
        {"name": "target", "batch": 2, "augmentation": {"crop": [32, 64]},
         "fit": {"epochs": 1, "device": "cpu"}},
    ],
}  # fmt: skip


@pytest.fixture
def searched(run, tmp_path):
    """A run that was searched, not trained; its data are four drawn scenes."""
    for name in ("genotype.json", "run.json", "result.json", "search.json", "table.json", "search.log.jsonl"):
        shutil.copy(run / name, tmp_path / name)
    (tmp_path / "two.json").write_text(json.dumps(TWO))
    return tmp_path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three classes: a data set of one's own."""
    root = tmp_path_factory.mktemp("folders")
    (root / "classes.json").write_text(json.dumps({"names": ["road", "sky", "car"]}))
    label = np.arange(3, dtype=np.uint8).repeat(11)[:32].repeat(64).reshape(32, 64)
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        for kind, pixels in (("images", label[..., None].repeat(3, 2) * 60), ("labels", label)):
            path = root / kind / split / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return f"folders:{root}"


def test_recipes_are_listed_and_printed():
    listed = hwnas("recipes").output
    assert all(f"{name:<8} {recipe.about}\n" in listed for name, recipe in RECIPES.items())
    assert "streets: segmentation on idd_lite, 120 epochs" in listed
    assert "teacher: segmentation on target, 200 epochs" in listed
    assert Recipe.model_validate_json(hwnas("recipes", "strong").stdout) == RECIPES["strong"]
    assert said("recipes").keys() == RECIPES.keys()
    refused = hwnas("recipes", "nosuch")
    assert refused.exit_code == EXIT_ERROR
    assert (
        'no recipe is called "nosuch". Known: paper, strong, taught, cpu; or name a file.json'
        in refused.stderr
    )


def test_a_run_is_trained_by_a_recipe_and_goes_on_as_any_other(searched, folders):
    recipe = ("--recipe", searched / "two.json", "--place", folders)
    twice = ("--set", "target.fit.epochs=2")
    result = hwnas("fit", searched, *recipe, *twice)
    assert result.exit_code == 0, result.output
    assert f"stage 1/2 before: segmentation on {folders}, split train: 2 images of 3 classes, 1 epochs" in (
        result.stderr
    )
    assert "stage 2/2 target: segmentation on synthetic, split train: 4 images of 8 classes" in result.stderr
    assert "before epoch 1/1" in result.stderr
    assert "target epoch 2/2" in result.stderr
    assert f"{searched / 'weights.pt'}: miou" in result.stdout
    assert Recipe.load(searched / "recipe.json").stages[1].fit.epochs == 2
    for verb in (("eval", "--pictures", "1"), ("export",), ("measure", *settings(rounds=1)), ("report",)):
        result = hwnas(verb[0], searched, *verb[1:])
        assert result.exit_code == 0, result.output
    assert "holds a training already" in hwnas("fit", searched, *recipe, *twice).stderr
    plain = hwnas("fit", searched, *settings(epochs=1, device="cpu"), "--resume")
    assert plain.exit_code == EXIT_ERROR
    assert f"Go on with that (--recipe {searched / 'recipe.json'} --resume), or train without" in plain.stderr
    assert hwnas("fit", searched, *recipe, *twice, "--resume").exit_code == 0
    assert "target.fit.epochs: checkpoint 2, asked 1" in hwnas("fit", searched, *recipe, "--resume").stderr


@pytest.mark.parametrize("by", ["recipe", "preset"])
def test_what_is_trained_on_is_not_scored(by, searched):
    (searched / "one.json").write_text(json.dumps({"about": "", "stages": TWO["stages"][1:]}))
    how = ["--recipe", searched / "one.json"] if by == "recipe" else settings(epochs=1, device="cpu")
    result = hwnas("fit", searched, *how, "--set", "data.train=val")
    assert result.exit_code == 0, result.output
    assert 'the split "val" is trained on ("val"), so nothing is scored' in result.stderr
    assert result.stdout == f"{searched / 'weights.pt'}: nothing was held out to score it on\n"


def test_the_same_architecture_is_trained_for_other_data(searched, folders, tmp_path):
    other = tmp_path / "other"
    refused = hwnas("fit", searched, "--data", folders)
    assert refused.exit_code == EXIT_ERROR
    assert f"tells 8 classes apart, {folders} has 3: train one of the same architecture" in refused.stderr
    again = ("fit", searched, "--data", folders, "--out", other, *settings(epochs=1, device="cpu"))
    assert hwnas(*again).exit_code == 0
    here, there = Genotype.load(searched / "genotype.json"), Genotype.load(other / "genotype.json")
    assert here.choices == there.choices
    assert (here.fields["num_classes"], there.fields["num_classes"]) == (8, 3)
    assert set(said("eval", other, "--pictures", "0")["per_class"]) == {"road", "sky", "car"}
    assert hwnas(*again, "--resume").exit_code == 0
    assert not (searched / "weights.pt").exists()
    elsewhere = hwnas("fit", searched, "--data", "synthetic", "--out", other, *settings(epochs=1))
    assert "holds a run of another architecture" in elsewhere.stderr
    (other / "genotype.json").unlink()  # as if stopped before it was written
    elsewhere = hwnas("fit", searched, "--data", "synthetic", "--out", other, *settings(epochs=1))
    assert elsewhere.exit_code == EXIT_ERROR
    assert f"{other} holds a run for {folders}, not for synthetic" in elsewhere.stderr


@pytest.mark.parametrize("by", ["recipe", "preset"])
def test_another_run_begins_with_the_weights_of_one(by, searched, folders, tmp_path):
    assert hwnas("fit", searched, *settings(epochs=1, device="cpu")).exit_code == 0
    (searched / "one.json").write_text(json.dumps({"about": "", "stages": TWO["stages"][1:]}))
    still = {"epochs": 1, "device": "cpu", "lr": 1e-12, "weight_decay": 0.0}
    how = (
        ["--recipe", searched / "one.json", *settings(**{f"target.fit.{key}": still[key] for key in still})]
        if by == "recipe"
        else settings(**still)
    )
    other = tmp_path / "other"
    again = ("fit", searched, "--pretrained", "--data", folders, "--out", other, *how)
    result = hwnas(*again)
    assert result.exit_code == 0, result.output
    assert RunSetup.load(other).began_with == f"{searched.name}, trained on synthetic, train"
    ours, theirs = (RunFolder(path).network().named_parameters() for path in (searched, other))
    differ = {
        name
        for (name, before), (_, after) in zip(ours, theirs, strict=True)
        if before.shape != after.shape or not torch.allclose(before, after, atol=1e-6)
    }
    assert differ == {name for name in differ if "classif" in name or "head" in name}
    assert 0 < len(differ) < 4
    assert hwnas(*again, "--resume").exit_code == 0
    fresh = hwnas("fit", searched, "--data", folders, "--out", other, *how, "--resume")
    assert fresh.exit_code == EXIT_ERROR
    assert f"began with those of {searched.name}, trained on synthetic, train, not with fresh" in fresh.stderr


def test_a_run_knows_whose_weights_it_began_with_when_it_was_first_begun_otherwise(
    searched, folders, tmp_path
):
    assert hwnas("fit", searched, *settings(epochs=1, device="cpu")).exit_code == 0
    other = tmp_path / "other"
    run = ("fit", searched, "--data", folders, "--out", other)
    assert hwnas(*run, "--pretrained", *settings(epochs=1, device="nosuch")).exit_code == EXIT_ERROR
    assert hwnas(*run, *settings(epochs=1, device="cpu")).exit_code == 0
    assert RunSetup.load(other).began_with is None
    refused = hwnas(*run, "--pretrained", *settings(epochs=1, device="cpu"), "--resume")
    assert refused.exit_code == EXIT_ERROR
    assert "holds a training that began with fresh weights, not with those of" in refused.stderr


def test_a_network_of_the_zoo_is_fine_tuned_in_a_folder_of_its_own(folders, tmp_path):
    name, mine = "autortnet-c-camvid", tmp_path / "mine"
    assert "fit with --out" in hwnas("fit", name, "--data", folders).stderr
    how = ("--data", folders, *settings(epochs=1, device="cpu", **{"data.batch": 2}))
    in_place = hwnas("fit", name, "--pretrained", *how)
    assert in_place.exit_code == EXIT_ERROR
    assert f"--pretrained begins another run with the weights of {name}" in in_place.stderr
    result = hwnas("fit", name, "--pretrained", "--out", mine, *how)
    assert result.exit_code == 0, result.output
    assert set(said("eval", mine, "--pictures", "0")["per_class"]) == {"road", "sky", "car"}
    card = zoo.card(name)
    learnt = f"{name}, trained on {card.data}, {card.split}"
    assert f"begins with the weights of {learnt}: images among those would be no test" in result.stderr
    assert RunSetup.load(mine).began_with == learnt
    begun = read_json(mine / "fit.json")["data"]["start"]
    assert begun == digest(zoo.load(name).state_dict())
    packed = ("zoo", "pack", mine, "mine", "--about", "x", "--licence", "mine", "--out", tmp_path / "zoo")
    assert said(*packed)["data"] == f"folders; began with the weights of {learnt}"


def test_an_architecture_of_the_zoo_is_trained_from_scratch_too(folders, tmp_path):
    name, mine = "autortnet-c-camvid", tmp_path / "mine"
    how = settings(epochs=1, device="cpu", **{"data.batch": 2})
    result = hwnas("fit", name, "--out", mine, "--data", folders, *how)
    assert result.exit_code == 0, result.output
    assert "begins with the weights" not in result.stderr
    assert RunSetup.load(mine).began_with is None
    assert "start" not in read_json(mine / "fit.json")["data"]
    ours, theirs = RunFolder(mine).genotype, zoo.find(name).genotype
    assert ours.choices == theirs.choices
    assert ours.fields["num_classes"] == 3


def test_a_transferred_run_knows_its_data_before_it_is_a_run(searched, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    images = DataChoice(name="synthetic", batch=2)
    with monkeypatch.context() as stopped:
        stopped.setattr(Genotype, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            RunFolder(searched).transferred(tmp_path / "other", images)
    assert RunSetup.load(tmp_path / "other").data == images
    other = RunFolder(searched).transferred(tmp_path / "other", images)
    assert other.genotype == RunFolder(searched).genotype
    # A genotype alone, as an earlier version left it when it was stopped, is given its data.
    (other.path / "run.json").unlink()
    assert RunSetup.load(RunFolder(searched).transferred(other.path, images).path).data == images


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "nosuch"], 'no recipe is called "nosuch"'),
        (
            ["--recipe", "cpu", "--set", "streets.fit.epoch=1"],
            "fit.epoch: Extra inputs are not permitted (got 1)\nKnown beside epoch: epochs",
        ),
        (["--recipe", "nosuch.json"], "no recipe at nosuch.json"),
        (["--set", "distillation_weight=1"], "teachers come with recipes: hwnas fit"),
        (["--recipe", "cpu", "--preset", "small"], "--recipe and --preset both say how to train"),
        (["--place", "idd_lite:x"], "--place idd_lite:x says where a recipe finds its data"),
        (["--recipe", "cpu"], "nothing says where idd_lite is; name a place for each (--place idd_lite:DIR)"),
        (["--recipe", "cpu", "--place", "kitti:x"], "besides --data the recipe has idd_lite."),
        (["--recipe", "cpu", "--set", "epochs=3"], '--set knows no "epochs"'),
        (["--recipe", "cpu", "--set", "batch=3"], "is ambiguous: write streets.batch or target.batch"),
        (["--recipe", "cpu", "--set", "target.name=x"], '--set knows no "target.name"'),
        (["--recipe", "cpu", "--set", "target.fit.lr=-1"], "Stage refuses these values:\n  fit.lr: Input"),
        (["--recipe", "cpu", "--set", "target.augmentation.zoom=1"], "augmentation.zoom: Unexpected keyword"),
        (
            ["--recipe", "cpu", "--set", "data.batch=3"],
            "is the recipe's to say, for each stage: --set target.",
        ),
        (["--recipe", "cpu", "--set", "streets.data=x"], "nothing says where x is"),
        (
            ["--recipe", "taught", "--set", "teacher.fit.lr=-1"],
            "TeacherStage refuses these values:\n  fit.lr",
        ),
    ],
)
def test_a_mistake_is_a_sentence_and_trains_nothing(arguments, message, searched, monkeypatch):
    monkeypatch.chdir(searched)
    before = sorted(searched.iterdir())
    result = hwnas("fit", searched, *arguments)
    assert result.exit_code == EXIT_ERROR
    assert message in result.stderr
    assert sorted(searched.iterdir()) == before
