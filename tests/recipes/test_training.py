import json
import math
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import hwnas.recipes.training as training
from hwnas.core.checkpoint import load_checkpoint
from hwnas.core.fit import FitConfig
from hwnas.core.runlog import read_log
from hwnas.core.weights import digest
from hwnas.errors import CheckpointError, DataError, Interrupted, InvalidInput
from hwnas.processes import Processes
from hwnas.recipes import RECIPES, Recipe, Stage, TeacherStage, train
from hwnas.recipes.training import class_weights, classification_loss, plan
from hwnas.search_spaces.autortnet import AutoRTNet
from hwnas.search_spaces.chain import Chain
from hwnas.segmentation import ImageLabelFolders, JointAugmentation, SyntheticScenes

from .test_images import as_zip, painted

SPACE = AutoRTNet(
    num_classes=3, height=32, width=64, cells=(1, 2, 2), init_channels=1, channel_multiplier=2,
    stem_channels=(2, 2), aggregation_width=2, head_width=4, head_dilations=(2,),
)  # fmt: skip
GENOTYPE = SPACE.random(torch.Generator().manual_seed(1))
FEW = {"synthetic": {"length": 8}}


def fitted(**values):
    return FitConfig(**{"epochs": 2, "lr": 0.05, "device": "cpu", **values})


STREETS = Stage(name="streets", data="synthetic", size=(32, 64), batch=4, auxiliary=True, fit=fitted())
TARGET = Stage(
    name="target",
    batch=2,
    augmentation=JointAugmentation(crop=(32, 64), rare=(2,), rare_share=0.5),
    class_weight_offset=1.1,
    auxiliary=True,
    fit=fitted(average_decay=0.9, epochs=3),
)
RECIPE = Recipe(about="both, small", stages=(STREETS, TARGET))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Streets are drawn, with 8 classes; the target is a folder with 3."""
    root = tmp_path_factory.mktemp("target")
    (root / "classes.json").write_text(json.dumps({"names": ["road", "sky", "car"]}))
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for index in range(count):
            label = rng.integers(0, 3, (4, 8)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
            label[:2] = 255
            for kind, pixels in (("images", label[..., None].repeat(3, 2) * 60), ("labels", label)):
                path = root / kind / split / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return {"target": f"folders:{root}", "synthetic": "synthetic"}


def run(places, out, recipe=RECIPE, **options):
    return train(SPACE, GENOTYPE, recipe, places, out=out, options=FEW, **options)


@pytest.fixture(scope="module")
def whole(places, tmp_path_factory):
    """A training without interruption: its folder, its network, its scores, and what was seen of it."""
    out = tmp_path_factory.mktemp("whole")
    began, said = [], []

    def spy(network, *arguments, **options):
        began.append(({name: value.clone() for name, value in network.state_dict().items()}, options))
        return fit(network, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        fit = training.fit
        patch.setattr(training, "fit", spy)
        network, scores = run(
            places,
            out,
            on_stage=lambda planned: said.append((planned.stage.name, planned.images, planned.steps)),
            on_progress=lambda stage, progress: said.append((stage.name, progress.epoch, progress.step)),
        )
    return SimpleNamespace(out=out, weights=network.state_dict(), scores=scores, began=began, said=said)


def test_a_stage_begins_with_the_weights_of_the_stage_before_it(whole):
    (_, streets), (weights, target) = whole.began
    kept = load_checkpoint(whole.out / "streets/weights.pt")["weights"]
    differ = [name for name in weights if kept[name].shape != weights[name].shape]
    # 8 classes against 3: of the network, only what tells classes apart begins anew.
    assert differ == [name for name in weights if name.startswith("head.classify")]
    assert all(torch.equal(weights[name], kept[name]) for name in weights if name not in differ)
    assert list(streets["auxiliary"]) == list(target["auxiliary"]) == ["hypercells.1", "hypercells.2"]
    assert streets["val"] is None and target["val"] is not None
    began_with = json.loads((whole.out / "fit.json").read_text())["data"]["start"]
    assert began_with == digest(kept)


def test_weights_pass_from_memory(whole, places, tmp_path):
    """A process on another machine has no file of those that the first one wrote."""

    def forget(planned):
        if planned.stage.name == "target":
            (tmp_path / "streets/weights.pt").unlink()

    _, scores = run(places, tmp_path, on_stage=forget)
    assert scores == whole.scores


def test_the_loss_is_that_of_the_stages_classes(whole):
    (_, streets), _ = whole.began
    assert streets["loss"].__self__.num_classes == 8


def test_what_is_there_in_the_end_is_a_training_like_any_other(whole):
    assert set(whole.scores["per_class"]) == {"road", "sky", "car"}
    assert {path.name for path in whole.out.iterdir()} >= {
        "recipe.json", "fit.json", "fit.log.jsonl", "weights.pt", "streets",
    }  # fmt: skip
    kept = load_checkpoint(whole.out / "weights.pt")["weights"]
    assert all(torch.equal(value, whole.weights[name]) for name, value in kept.items())
    assert kept.keys() == SPACE.build(GENOTYPE).state_dict().keys()  # no auxiliary head
    assert Recipe.load(whole.out / "recipe.json") == RECIPE


def test_stages_are_told_as_they_begin_and_go_on(whole):
    assert whole.said[0] == ("streets", 8, 2)
    assert whole.said.index(("target", 6, 3)) == 1 + 2 * (2 + 1)  # two epochs of two steps, each with its end
    assert whole.said[-1] == ("target", 2, 9)


@pytest.mark.parametrize(
    ("stopped_in", "step", "every_steps"),
    [("streets", 0, 0), ("streets", 3, 1), ("target", 1, 1), ("target", 4, 0)],
)
def test_what_was_stopped_goes_on_bit_for_bit(stopped_in, step, every_steps, whole, places, tmp_path):
    stages = [
        stage.model_copy(update={"fit": stage.fit.model_copy(update={"checkpoint_every_steps": every_steps})})
        for stage in RECIPE.stages
    ]
    recipe = RECIPE.model_copy(update={"stages": tuple(stages)})

    def stop(stage, progress):
        if stage.name == stopped_in and progress.step == step and not progress.end_of_epoch:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(places, tmp_path, recipe, on_progress=stop)
    resumed, scores = run(places, tmp_path, recipe, resume=True)
    assert scores == whole.scores
    for name, value in whole.weights.items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    for folder in ("", "streets"):
        logs = [
            [
                {key: value for key, value in event.items() if key != "seconds"}
                for event in read_log(out / folder / "fit.log.jsonl")
            ]
            for out in (whole.out, tmp_path)
        ]
        assert logs[0] == logs[1]


@pytest.fixture
def finished(whole, tmp_path):
    """A copy of the finished training."""
    return Path(shutil.copytree(whole.out, tmp_path / "finished"))


def test_what_is_done_is_not_done_again(whole, finished, places):
    steps = []
    again, scores = run(places, finished, resume=True, on_progress=lambda *step: steps.append(step))
    assert (steps, scores) == ([], whole.scores)
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in whole.weights.items())


def test_another_recipe_is_refused_and_the_folder_stays_as_it_is(finished, places):
    other = TARGET.model_copy(update={"fit": fitted(epochs=5), "batch": 3})
    with pytest.raises(CheckpointError) as caught:
        run(places, finished, Recipe(about="other", stages=(STREETS, other)), resume=True)
    assert "holds a training by another recipe:\n" in str(caught.value)
    assert "  target.batch: checkpoint 2, asked 3\n" in str(caught.value)
    assert "  target.fit.epochs: checkpoint 3, asked 5\n" in str(caught.value)
    with pytest.raises(CheckpointError, match="stages: checkpoint 'streets target', asked 'target'"):
        run(places, finished, Recipe(about="other", stages=(TARGET,)), resume=True)
    with pytest.raises(InvalidInput, match="holds a training already"):
        run(places, finished)
    assert Recipe.load(finished / "recipe.json") == RECIPE


def test_other_words_about_a_recipe_do_not_make_another(finished, places):
    run(places, finished, Recipe(about="other words", stages=RECIPE.stages), resume=True)


def test_a_training_without_a_recipe_is_not_taken_for_one(places, tmp_path):
    (tmp_path / "fit.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds a training without a recipe"):
        run(places, tmp_path, resume=True)


def test_a_recipe_that_was_stopped_in_another_stage_is_not_forgotten(places, tmp_path):
    """Stopped in its first stage, which the other recipe does not have."""

    def stop(stage, progress):
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(places, tmp_path, on_progress=stop)
    other = Recipe(about="other", stages=(TARGET,))
    for resume in (False, True):
        with pytest.raises(CheckpointError, match="stages: checkpoint 'streets target', asked 'target'"):
            run(places, tmp_path, other, resume=resume)
    with pytest.raises(InvalidInput, match=r"streets holds a training already"):
        run(places, tmp_path)
    assert Recipe.load(tmp_path / "recipe.json") == RECIPE


def test_a_recipe_of_which_nothing_was_begun_may_be_another(places, tmp_path):
    (tmp_path / "recipe.json").write_text(RECIPE.model_dump_json())
    short = Recipe(about="", stages=(Stage(name="target", batch=6, fit=fitted(epochs=1)),))
    run(places, tmp_path, short, val=None)
    assert Recipe.load(tmp_path / "recipe.json") == short


def test_pre_training_that_was_copied_is_not_done_again(whole, places, tmp_path):
    shutil.copytree(whole.out / "streets", tmp_path / "streets")
    seen = []
    _, scores = run(
        places, tmp_path, resume=True, on_progress=lambda stage, progress: seen.append(stage.name)
    )
    assert set(seen) == {"target"}
    assert scores == whole.scores


def test_other_data_are_refused(finished, places):
    few = {"synthetic": {"length": 4}}
    with pytest.raises(CheckpointError, match=r"data.pictures: checkpoint 8, asked 4"):
        train(SPACE, GENOTYPE, RECIPE, places, out=finished, options=few, resume=True)


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
    monkeypatch.setattr(training, "processes", lambda: Processes(0, 2))
    with pytest.raises(InvalidInput, match="stage target: a batch of 3 cannot be divided among 2 processes"):
        run(places, tmp_path, with_target(batch=3))
    assert not list(tmp_path.iterdir())


class PixelAccuracy:
    """A metric of somebody's own."""

    def reset(self):
        self.right = self.seen = 0

    def update(self, logits, targets):
        self.right += int((logits.argmax(1) == targets).sum())
        self.seen += int((targets != 255).sum())

    def compute(self):
        return {"right": 100 * self.right / self.seen}


class OwnMetric(AutoRTNet):
    def metric(self):
        return PixelAccuracy()


class NoMetric(AutoRTNet):
    def metric(self):
        return None


def test_the_metric_is_the_spaces(places, tmp_path):
    short = Recipe(about="", stages=(Stage(name="target", batch=6, fit=fitted(epochs=1)),))
    fields = SPACE.model_dump()
    _, scores = train(OwnMetric(**fields), GENOTYPE, short, places, out=tmp_path / "own")
    assert scores.keys() == {"right"}
    with pytest.raises(InvalidInput, match="autortnet has no metric"):
        train(NoMetric(**fields), GENOTYPE, short, places, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_images_are_kept_in_memory_where_it_is_said(places, tmp_path, monkeypatch):
    seen = []

    def spy(place, split, **options):
        seen.append((place, split, options.get("cache")))
        return opened(place, split, **options)

    opened = training.open_dataset
    monkeypatch.setattr(training, "open_dataset", spy)
    for cache in (True, False):
        stage = Stage(name="target", batch=6, cache=cache, fit=fitted(epochs=1))
        seen.clear()
        run(places, tmp_path / "run", Recipe(about="", stages=(stage,)), resume=not cache)
        assert [cached for *_, cached in seen] == [False, False, cache, cache]
    assert not Stage(name="target").cache
    assert [stage.cache for stage in RECIPES["taught"].all_stages] == [True, False, True, True]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_lie_where_a_gpu_can_read_them(device, places, tmp_path, monkeypatch):
    seen = []

    def spied(loader):
        def spy(*arguments, pin_memory, **options):
            seen.append(pin_memory)
            return loader(*arguments, **options)

        return spy

    for name in ("training_loader", "evaluation_loader"):
        monkeypatch.setattr(training, name, spied(getattr(training, name)))
    # What fit() trains on is the stage's "cpu" all the same.
    monkeypatch.setattr(training, "torch_device", lambda name: torch.device(device))
    stage = Stage(name="target", batch=6, fit=fitted(epochs=1))
    run(places, tmp_path, Recipe(about="", stages=(stage,)))
    assert seen == [device == "cuda"] * 2


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


def test_a_network_learns_images_then_streets(places, tmp_path):
    as_zip(tmp_path / "pictures/train-0.zip", "train", painted(size=(40, 40)))
    pictures = Stage(
        name="pictures",
        task="classification",
        data="pictures",
        augmentation=JointAugmentation(crop=(32, 32)),
        batch=3,
        fit=fitted(),
    )
    recipe = Recipe(about="", stages=(pictures, TARGET))
    places = {**places, "pictures": f"pictures:{tmp_path / 'pictures'}"}
    network, scores = run(places, tmp_path / "run", recipe)
    assert 0 <= scores["miou"] <= 100
    assert network(torch.zeros(1, 3, 32, 64)).shape == (1, 3, 32, 64)


def test_a_teacher_teaches_where_it_is_asked_to(places, tmp_path):
    weights = []
    for weight in (2.0, 0.0):
        stage = Stage(name="target", batch=6, fit=fitted(epochs=1, distillation_weight=weight))
        torch.manual_seed(9)
        teacher = SPACE.build(GENOTYPE)
        recipe = Recipe(about="", stages=(stage,))
        network, _ = run(places, tmp_path / f"{weight}", recipe, val=None, teacher=teacher)
        weights.append(network.state_dict())
    assert any(not torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_recipes_own_teacher_is_trained_first(places, tmp_path, monkeypatch):
    # One convolution in the place of EfficientNet: what is tested is who trains when, and who teaches.
    monkeypatch.setattr(training, "imagenet_weights", lambda: None)
    monkeypatch.setattr(training, "pretrained_teacher", lambda count: torch.nn.Conv2d(3, count, 1))
    seen = []
    fit = training.fit

    def spy(network, *arguments, **options):
        seen.append((type(network).__name__, options["teacher"], options["val"] is not None))
        return fit(network, *arguments, **options)

    monkeypatch.setattr(training, "fit", spy)
    stage = Stage(name="target", batch=6, fit=fitted(epochs=1, distillation_weight=1.0))
    teacher = TeacherStage(batch=6, fit=fitted(epochs=1))
    recipe = Recipe(about="", stages=(stage,), teacher=teacher)
    network, scores = run(places, tmp_path, recipe)
    (first, nobody, is_scored), (second, taught_by, _) = seen
    assert (first, nobody, is_scored) == ("Conv2d", None, True)
    assert second == "AutoRTNetwork"
    kept = load_checkpoint(tmp_path / "teacher/weights.pt")["weights"]
    assert torch.equal(kept["weight"], taught_by.weight)
    resumed, same = run(places, tmp_path, recipe, resume=True)
    assert scores == same
    assert all(torch.equal(v, resumed.state_dict()[n]) for n, v in network.state_dict().items())
    with pytest.raises(InvalidInput, match="there are two teachers"):
        run(places, tmp_path / "b", recipe, teacher=torch.nn.Conv2d(3, 3, 1))


def test_classification_loss_by_hand():
    """The mean over the map decides: (1 + 3) / 2 against (0 + 0) / 2."""
    logits = torch.tensor([[[[1.0, 3.0]], [[0.0, 0.0]]]])
    expected = math.log(math.exp(2) + 1) - 2
    assert float(classification_loss(logits, torch.tensor([0]))) == pytest.approx(expected, rel=1e-6)
    assert classification_loss(logits.bfloat16(), torch.tensor([0])).dtype == torch.float32
    pooled = functional.cross_entropy(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    torch.testing.assert_close(classification_loss(logits, torch.tensor([1])), pooled)


def test_class_weights_by_hand(tmp_path):
    """Of 8 pixels two are void; of the others 4, 1 and 1 are of the classes 0, 1 and 2, none of class 3."""
    label = np.array([[0, 0, 0, 0], [1, 2, 255, 255]], np.uint8)
    for kind, pixels in (("images", np.zeros((2, 4, 3), np.uint8)), ("labels", label)):
        (tmp_path / kind / "train").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / kind / "train/a.png")
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["a", "b", "c", "d"]}))
    weights = class_weights(ImageLabelFolders(tmp_path), 1.1)
    expected = [1 / math.log(1.1 + share) for share in (4 / 6, 1 / 6, 1 / 6, 0)]
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_class_weights_do_not_hang_on_augmentation():
    plain = SyntheticScenes(size=(32, 64), length=3)
    augmented = SyntheticScenes(size=(32, 64), length=3, augment=True)
    assert torch.equal(class_weights(plain, 1.02), class_weights(augmented, 1.02))


def test_the_recipes_find_real_data(real_data, tmp_path):
    places = {name: f"{name}:{real_data(name)}" for name in ("idd_lite", "tiny_imagenet")}
    places["target"] = f"camvid:{real_data('camvid')}"
    space = AutoRTNet()
    genotype = space.random(torch.Generator().manual_seed(0))
    planned = plan(space, genotype, RECIPES["strong"], places, out=tmp_path)
    assert [(each.images, each.num_classes) for each in planned] == [(100_000, 200), (1403, 7), (367, 11)]
    assert [each.folder.name for each in planned[:2]] == ["pictures", "streets"]
    assert planned[2].folder == tmp_path
