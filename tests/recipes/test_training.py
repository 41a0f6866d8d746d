import json
import os
import shutil
import signal

import pytest
import torch

from hwnas.core.checkpoint import load_checkpoint
from hwnas.core.runlog import read_log
from hwnas.core.space import for_classes
from hwnas.core.weights import digest, load_weights
from hwnas.errors import CheckpointError, Interrupted, InvalidInput
from hwnas.recipes import RECIPES, Recipe, SoftTargetConfig, Stage, TeacherStage, planning, train, training
from hwnas.search_spaces.autortnet import AutoRTNet
from hwnas.segmentation import JointAugmentation

from .test_images import as_zip, painted
from .two_stages import GENOTYPE, RECIPE, SPACE, TARGET, fitted, run


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


def test_images_on_the_device_train_the_same_network(whole, places, tmp_path):
    network, scores = run(places, tmp_path, on_device=True)
    assert scores == whole.scores
    assert all(torch.equal(value, whole.weights[name]) for name, value in network.state_dict().items())
    with pytest.raises(InvalidInput, match="workers must be 0; got 2"):
        run(places, tmp_path, on_device=True, workers=2)


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


def test_what_is_done_is_not_done_again(whole, finished, places):
    steps = []
    again, scores = run(places, finished, resume=True, on_progress=lambda *step: steps.append(step))
    assert (steps, scores) == ([], whole.scores)
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in whole.weights.items())


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
    own = GENOTYPE.model_copy(update={"space": OwnMetric.name})
    _, scores = train(OwnMetric(**fields), own, short, places, out=tmp_path / "own")
    assert scores.keys() == {"right"}
    with pytest.raises(InvalidInput, match="NoMetric has no metric"):
        train(NoMetric(**fields), GENOTYPE, short, places, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_images_are_kept_in_memory_where_it_is_said(places, tmp_path, monkeypatch):
    seen = []

    def spy(place, split, **options):
        seen.append((place, split, options.get("cache")))
        return opened(place, split, **options)

    opened = training.open_dataset
    for module in (planning, training):
        monkeypatch.setattr(module, "open_dataset", spy)
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
    space, genotype = for_classes(SPACE, GENOTYPE, 3)
    load_weights(space.build(genotype), tmp_path / "run/pictures/weights.pt")


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


@pytest.fixture
def small_teacher(monkeypatch):
    """One convolution in the place of EfficientNet: what is tested is who trains when, and who teaches."""
    monkeypatch.setattr(planning, "imagenet_weights", lambda: None)
    monkeypatch.setattr(training, "pretrained_teacher", lambda count, frozen: torch.nn.Conv2d(3, count, 1))


@pytest.mark.usefixtures("small_teacher")
def test_a_recipes_own_teacher_is_trained_first(places, tmp_path, monkeypatch):
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


@pytest.mark.usefixtures("small_teacher")
def test_a_given_start_is_the_first_stages_and_not_the_teachers(places, tmp_path, monkeypatch):
    began = []
    fit = training.fit

    def spy(network, *arguments, **options):
        weights = {name: value.clone() for name, value in network.state_dict().items()}
        began.append((weights, options["description"]["start"]))
        return fit(network, *arguments, **options)

    monkeypatch.setattr(training, "fit", spy)
    stage = Stage(name="target", batch=6, fit=fitted(epochs=1, distillation_weight=1.0))
    recipe = Recipe(about="", stages=(stage,), teacher=TeacherStage(batch=6, fit=fitted(epochs=1)))
    start = SPACE.build(GENOTYPE)
    before = {name: value.clone() for name, value in start.state_dict().items()}
    run(places, tmp_path / "a", recipe, start=start)
    (_, nothing), (weights, digested) = began
    assert nothing is None and digested == digest(before)
    assert all(torch.equal(weights[name], value) for name, value in before.items())
    assert all(torch.equal(start.state_dict()[name], value) for name, value in before.items())
    # Not with other weights, nor with none.
    for other in (None, SPACE.build(GENOTYPE)):
        with pytest.raises(CheckpointError, match="start"):
            run(places, tmp_path / "a", recipe, start=other, resume=True)


def test_images_without_labels_are_learnt_from_a_teacher(places, tmp_path, monkeypatch):
    loaders = []
    loader = training.training_loader

    def spy(images, *arguments, **options):
        loaders.append(images)
        return loader(images, *arguments, **options)

    monkeypatch.setattr(training, "training_loader", spy)
    crop = JointAugmentation(crop=(32, 64), rare=(2,), rare_share=1.0)
    stage = Stage(
        name="target",
        batch=2,
        augmentation=crop,
        unlabelled=("synthetic",),
        unlabelled_share=0.4,
        unlabelled_size=(48, 96),
        fit=fitted(epochs=2, distillation_weight=1.0),
    )
    recipe = Recipe(about="", stages=(stage,))
    torch.manual_seed(9)
    teacher = SPACE.build(GENOTYPE)
    with pytest.raises(InvalidInput, match="nothing says where synthetic is"):
        run({"target": places["target"]}, tmp_path / "none", recipe, teacher=teacher)
    network, _ = run(places, tmp_path / "run", recipe, val=None, teacher=teacher)
    (seen,) = loaders
    # 6 with labels are 60 %, so 4 are without.
    assert (len(seen), seen.count) == (10, 4)
    assert all(bool((seen[index, 1][1] == 255).all()) for index in range(6, 10))
    assert seen.others[0].augment.rare == ()  # class 2 is another there
    assert seen.others[0].size == (48, 96)
    told = json.loads((tmp_path / "run/fit.json").read_text())["data"]["unlabelled"]
    assert told == [
        {"data": "synthetic", "split": "train", "options": {"length": 8, "size": [48, 96]}, "pictures": 8}
    ]
    assert len(list(read_log(tmp_path / "run/fit.log.jsonl"))) == 2 * (5 + 1)

    alone = Recipe(about="", stages=(Stage(name="target", batch=2, augmentation=crop, fit=stage.fit),))
    other, _ = run(places, tmp_path / "alone", alone, val=None, teacher=teacher)
    assert any(not torch.equal(v, other.state_dict()[n]) for n, v in network.state_dict().items())

    def stop(_, progress):
        if progress.step == 6 and not progress.end_of_epoch:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(places, tmp_path / "again", recipe, val=None, teacher=teacher, on_progress=stop)
    again, _ = run(places, tmp_path / "again", recipe, val=None, teacher=teacher, resume=True)
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    with pytest.raises(CheckpointError, match=r"data.unlabelled: checkpoint .*'pictures': 8.*'pictures': 5"):
        train(
            SPACE, GENOTYPE, recipe, places, out=tmp_path / "again", val=None, teacher=teacher, resume=True,
            options={"synthetic": {"length": 5}},
        )  # fmt: skip


def test_a_teacher_that_is_asked_once_teaches_as_one_that_is_asked_often(places, tmp_path):
    def taught(out, teacher, soft_targets, **options):
        stage = Stage(
            name="target",
            batch=2,
            cache=True,
            augmentation=JointAugmentation(
                crop=(32, 64), scale=(1, 1), brightness=0, contrast=0, saturation=0
            ),
            unlabelled=("synthetic",),
            unlabelled_size=(32, 64),
            soft_targets=soft_targets,
            fit=fitted(epochs=2, lr=0.01, distillation_weight=50.0),
        )
        recipe = Recipe(about="", stages=(stage,))
        network, _ = run(places, tmp_path / out, recipe, val=None, teacher=teacher, **options)
        first, *_ = read_log(tmp_path / out / "fit.log.jsonl")
        return first["loss"], torch.cat([value.flatten() for value in network.state_dict().values()])

    torch.manual_seed(9)
    # One that tells neighbours alike: what it says loses nothing at a quarter of the resolution.
    teacher = torch.nn.Sequential(
        torch.nn.AvgPool2d(4), torch.nn.Conv2d(3, 3, 1), torch.nn.Upsample(scale_factor=4)
    )
    asked = SoftTargetConfig(mirrored=False)
    (often, _), (once, weights) = taught("often", teacher, None), taught("once", teacher, asked)
    (other, _) = taught("other", torch.nn.Conv2d(3, 3, 1), asked)
    assert abs(once - often) < 0.05 * often < abs(other - often)
    told = json.loads((tmp_path / "once/fit.json").read_text())
    assert told["data"]["stage"]["soft_targets"] == {"scales": [1.0], "mirrored": False}
    assert told["data"]["teacher"] == digest(teacher.state_dict()) and "teacher" not in told

    def stop(_, progress):
        if progress.step == 8 and not progress.end_of_epoch:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        taught("again", teacher, asked, on_progress=stop)
    assert torch.equal(taught("again", teacher, asked, resume=True, workers=2)[1], weights)
    shown = []
    hook = teacher.register_forward_hook(lambda *_: shown.append(1))
    assert torch.equal(taught("again", teacher, asked, resume=True)[1], weights)
    assert not shown  # what is done asks nothing
    assert torch.equal(taught("on_device", teacher, asked, on_device=True)[1], weights)
    assert len(shown) <= 6 + 8  # once for each image
    hook.remove()
    with pytest.raises(CheckpointError, match=r"data\.teacher: checkpoint"):
        taught("again", torch.nn.Conv2d(3, 3, 1), asked, resume=True)


def test_a_run_from_before_later_fields_is_resumed(whole):
    """Its identity does not have them: a stage that leaves them at what was done then is the same stage."""
    told = json.loads((whole.out / "fit.json").read_text())["data"]
    assert not set(training._LATER) & told["stage"].keys() and "unlabelled" not in told
    assert set(training._LATER) <= TeacherStage.model_fields.keys()
    stage = Stage(name="a", task="classification", data="x", least_share=0.2)
    assert training._described(stage)["least_share"] == 0.2
    assert training._described(TeacherStage(frozen=2))["frozen"] == 2
