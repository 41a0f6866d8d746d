"""What is looked for before the first stage begins."""

import pytest
import torch

from hwnas.errors import DataError, InvalidInput
from hwnas.processes import Processes
from hwnas.recipes import RECIPES, Recipe, Stage, planning
from hwnas.recipes.planning import plan
from hwnas.search_spaces.autortnet import AutoRTNet
from hwnas.search_spaces.chain import Chain
from hwnas.segmentation import JointAugmentation

from .two_stages import FEW, GENOTYPE, SPACE, STREETS, TARGET, fitted, run


def test_all_data_are_found_before_anything_is_trained(places, tmp_path):
    with pytest.raises(
        InvalidInput, match=r"trains on synthetic, target, and nothing says where synthetic is"
    ):
        run({"target": places["target"]}, tmp_path)
    with pytest.raises(DataError, match="no folder"):
        run({**places, "target": f"folders:{tmp_path / 'nosuch'}"}, tmp_path)
    with pytest.raises(
        InvalidInput, match=r"stage target wants batches of 7, and the split train of .* has 6"
    ):
        run(places, tmp_path, Recipe(about="", stages=(STREETS, TARGET.model_copy(update={"batch": 7}))))
    with pytest.raises(InvalidInput, match=r'the split "val" is trained on \("train\+val"\)'):
        run(places, tmp_path, splits={"target": "train+val"})
    taught = Recipe(
        about="", stages=(STREETS, Stage(name="target", batch=2, fit=fitted(distillation_weight=1)))
    )
    with pytest.raises(InvalidInput, match="in stage target a teacher teaches"):
        run(places, tmp_path, taught)
    chain = Chain(size=32, num_classes=3)
    with pytest.raises(InvalidInput, match="stage target wants auxiliary heads, and chain has none"):
        plan(chain, chain.random(), Recipe(about="", stages=(TARGET,)), places, out=tmp_path)
    assert not list(tmp_path.iterdir())


def with_target(**values):
    return Recipe(about="", stages=(STREETS, TARGET.model_copy(update=values)))


def test_what_the_last_stage_needs_is_looked_for_before_the_first(places, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="nosuch"):
        run(places, tmp_path, val="nosuch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidInput, match='"cuda" was asked for, but torch sees no CUDA device'):
        run(places, tmp_path, with_target(fit=fitted(device="cuda")))
    monkeypatch.setattr(planning, "processes", lambda: Processes(0, 2))
    with pytest.raises(InvalidInput, match="stage target: a batch of 3 cannot be divided among 2 processes"):
        run(places, tmp_path, with_target(batch=3))
    assert not list(tmp_path.iterdir())


def test_splits_and_sizes_are_as_asked(places, tmp_path):
    sized = TARGET.model_copy(update={"size": (24, 40)})
    options = {**FEW, "target": {"size": (16, 32), "cache": True}}
    splits = {"target": "train+val"}
    for stage, size in ((TARGET, (16, 32)), (sized, (24, 40))):
        _, target = plan(
            SPACE,
            GENOTYPE,
            Recipe(about="", stages=(STREETS, stage)),
            places,
            out=tmp_path,
            splits=splits,
            val=None,
            options=options,
        )
        assert (target.images, target.split, target.options["size"]) == (8, "train+val", size)
    _, found = run(places, tmp_path / "run", Recipe(about="", stages=(TARGET,)), splits=splits, val=None)
    assert found == {}


def test_the_recipes_find_real_data(real_data, tmp_path):
    places = {name: f"{name}:{real_data(name)}" for name in ("idd_lite", "tiny_imagenet")}
    places["target"] = f"camvid:{real_data('camvid')}"
    space = AutoRTNet()
    genotype = space.random(torch.Generator().manual_seed(0))
    planned = plan(space, genotype, RECIPES["strong"], places, out=tmp_path)
    assert [(each.images, each.num_classes) for each in planned] == [(100_000, 200), (1403, 7), (367, 11)]
    assert [each.folder.name for each in planned[:2]] == ["pictures", "streets"]
    assert planned[2].folder == tmp_path


def unlabelled(**values):
    stage = Stage(
        name="target",
        batch=2,
        augmentation=JointAugmentation(crop=(32, 64)),
        fit=fitted(distillation_weight=1.0),
        **{"unlabelled": ("synthetic",), **values},
    )
    return Recipe(about="", stages=(stage,))


def test_images_without_labels_are_counted_and_checked(places, tmp_path, monkeypatch):
    def planned(recipe, **options):
        (target,) = plan(SPACE, GENOTYPE, recipe, places, out=tmp_path, options=FEW, **options)
        return target

    half, few = planned(unlabelled()), planned(unlabelled(unlabelled_share=0.01))
    assert (half.images, half.drawn, half.steps) == (6, 6, 6)
    assert few.drawn == 1
    assert [each.images for each in half.unlabelled] == [8]
    with pytest.raises(InvalidInput, match=r"batches of 9, .* has 6 images, and 2 without labels are drawn"):
        wide = unlabelled(unlabelled_share=0.25)
        planned(wide.model_copy(update={"stages": (wide.stages[0].model_copy(update={"batch": 9}),)}))
    same = {**places, "again": places["target"]}
    with pytest.raises(InvalidInput, match=r'"val" of .* is learnt from without its labels'):
        plan(SPACE, GENOTYPE, unlabelled(unlabelled=("again",)), same, out=tmp_path, splits={"again": "val"})
    monkeypatch.setattr(planning, "processes", lambda: Processes(0, 2))
    with pytest.raises(InvalidInput, match="from synthetic without labels, which one process alone can do"):
        planned(unlabelled())
