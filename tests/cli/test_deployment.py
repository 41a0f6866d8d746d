"""From a trained run to files, scores of files, predictions on pictures and an entry of the zoo."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from hwnas.cli.app import EXIT_ERROR
from hwnas.segmentation import SyntheticScenes
from tests.cli.conftest import hwnas, said, settings

pytest.importorskip("onnxruntime")

DATA = ("--data", "synthetic", "--set", "data.length=4")


@pytest.fixture(scope="module")
def files(run, tmp_path_factory):
    """The run's network in each precision, with and without the argmax."""
    folder = tmp_path_factory.mktemp("files")
    found = {}
    for name, options in {
        "fp32": (),
        "fp16": ("--precision", "fp16"),
        "int8": ("--precision", "int8", "--calibration", "3"),
        "classes": ("--argmax",),
    }.items():
        found[name] = said("export", run, *options, "--out", folder / f"{name}.onnx")
    return found


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A picture of another size than the network's."""
    path = tmp_path_factory.mktemp("pictures") / "street.png"
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_the_files_are_where_they_are_said_to_be(run, files):
    assert (run / "net.onnx").is_file()  # of the plain hwnas export RUN
    for name, values in files.items():
        assert values["size_bytes"] == Path(values["path"]).stat().st_size, name
        assert values["images_compared"] == 4, name
    assert files["classes"]["output"] == "classes"
    # fp32 names the same classes but for ties.
    assert files["fp32"]["agreement_percent"] > 99.9
    assert files["int8"]["calibration_images"] == 3


def test_a_default_name_says_what_a_file_is(run):
    said("export", run, "--precision", "fp16", "--argmax")
    assert (run / "net-fp16-classes.onnx").is_file()


def test_a_file_scores_as_its_run_does(run, files):
    scored = json.loads((run / "eval.json").read_text())
    assert scored.pop("weights")
    for name in ("fp32", "classes"):
        found = said("eval", files[name]["path"], *DATA)
        assert found.keys() == scored.keys()
        assert found["miou"] == pytest.approx(scored["miou"], abs=0.1)
        assert found["per_class"].keys() == scored["per_class"].keys()
        assert json.loads(Path(files[name]["path"] + ".eval.json").read_text()) == found


def test_a_file_needs_data_of_its_classes(files):
    result = hwnas("eval", files["fp32"]["path"])
    assert result.exit_code == EXIT_ERROR
    assert "name them with --data NAME:DIR" in result.stderr
    model = onnx.load(files["fp32"]["path"])
    for prop in model.metadata_props:
        if prop.key == "hwnas.classes":
            prop.value = prop.value.replace("road", "river")
    onnx.save(model, files["fp32"]["path"] + ".other.onnx")
    result = hwnas("eval", files["fp32"]["path"] + ".other.onnx", *DATA)
    assert result.exit_code == EXIT_ERROR
    assert "tells apart river, pavement" in result.stderr


def test_a_file_is_not_scored_on_pictures_that_are_normalised_otherwise(files):
    model = onnx.load(files["fp32"]["path"])
    for prop in model.metadata_props:
        if prop.key == "hwnas.std":
            prop.value = "[0.5, 0.5, 0.5]"
        if prop.key == "hwnas.ignore_index":
            prop.value = "254"
    other = files["fp32"]["path"] + ".std.onnx"
    onnx.save(model, other)
    result = hwnas("eval", other, *DATA)
    assert result.exit_code == EXIT_ERROR
    assert (
        "wants pictures normalised with std (0.5, 0.5, 0.5), and synthetic normalises with" in result.stderr
    )
    assert not Path(other + ".eval.json").exists()
    for prop in model.metadata_props:
        if prop.key == "hwnas.std":
            prop.value = json.dumps(SyntheticScenes.std)
    onnx.save(model, other)
    # What unlabelled pixels are called is the data's business.
    assert hwnas("eval", other, *DATA).exit_code == 0


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8"])
def test_a_file_is_measured_as_it_is(name, files):
    found = said("measure", files[name]["path"], "--device", "cpu", "--allow-busy",
                 *settings(rounds=1, processes=1))  # fmt: skip
    assert found["median_ms"] > 0
    assert (found["precision"], found["backend"], found["batch"]) == (name, "onnxruntime", 1)
    assert json.loads(Path(files[name]["path"] + ".measure.json").read_text()) == found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "fp16"], "is measured in its own precision: leave --precision out"),
        (["--backend", "torch"], "torch does not read ONNX files: use --backend onnxruntime"),
    ],
)
def test_a_file_is_not_measured_as_what_it_is_not(options, message, files):
    result = hwnas("measure", files["fp32"]["path"], "--device", "cpu", *options)
    assert result.exit_code == EXIT_ERROR
    assert message in result.stderr


def test_options_that_would_do_nothing_are_refused(run, tmp_path):
    result = hwnas("export", run, "--calibration", "3", "--out", tmp_path / "n.onnx")
    assert result.exit_code == EXIT_ERROR
    assert "--calibration is for --precision int8; fp32 observes no ranges" in result.stderr
    for name in ("genotype.json", "weights.pt"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    result = hwnas("export", tmp_path, "--set", "data.length=3")
    assert result.exit_code == EXIT_ERROR
    assert "--set data.length says how data are loaded, and nothing says which" in result.stderr
    assert not list(tmp_path.glob("*.onnx"))


def test_a_run_that_was_trained_on_another_split_has_no_score_on_it(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "eval.json").unlink()
    for left in ("weights.pt", "fit.json", "fit.log.jsonl", *(path.name for path in copy.glob("fit-*"))):
        (copy / left).unlink(missing_ok=True)
    shutil.rmtree(copy / "checkpoints", ignore_errors=True)
    fitted = hwnas("fit", copy, "--set", "data.train=val", *settings(epochs=1, device="cpu"))
    assert fitted.exit_code == 0, fitted.output
    evaluated = hwnas("eval", copy, "--pictures", "0")
    assert (
        "was trained on val of these data: its score there says nothing of other images" in evaluated.stderr
    )
    about = ("--about", "a test", "--licence", "none: drawn", "--training-device", "a CPU")
    packed = hwnas("zoo", "pack", copy, "tiny", "--out", tmp_path / "zoo", *about)
    assert packed.exit_code == EXIT_ERROR
    assert "is an evaluation on val, which is part of what it was trained on, val" in packed.stderr
    other = hwnas("zoo", "pack", copy, "tiny", "--out", tmp_path / "zoo", *about, "--data", "camvid:nowhere")
    assert other.exit_code == EXIT_ERROR
    assert "was trained on synthetic, not on camvid:nowhere" in other.stderr


def test_a_network_is_not_exported_with_the_classes_of_other_data(tmp_path):
    result = hwnas(
        "export", "autortnet-c-camvid", "--data", "cityscapes:nowhere", "--out", tmp_path / "c.onnx"
    )
    assert result.exit_code == EXIT_ERROR
    assert "autortnet-c-camvid tells apart sky, building" in result.stderr
    assert "the classes of cityscapes:nowhere are road, sidewalk" in result.stderr
    assert not (tmp_path / "c.onnx").exists()


def test_pictures_are_predicted_by_a_network_of_the_zoo_where_none_is_named(picture, tmp_path):
    result = hwnas("predict", picture, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "assuming --net autortnet-a-camvid" in result.stderr
    assert (tmp_path / "street.png").is_file()


def test_a_twin_scores_for_a_network_that_was_trained_on_all(run, tmp_path):
    about = ("--about", "a test", "--licence", "none: drawn", "--training-device", "a CPU")
    all_of_it = ("zoo", "pack", run, "tiny", "--out", tmp_path, *about, "--split", "train+val")
    result = hwnas(*all_of_it)
    assert result.exit_code == EXIT_ERROR
    assert "is an evaluation on val, which is part of what it was trained on" in result.stderr
    (score,) = said(*all_of_it, "--twin", run)["scores"]
    assert (score["split"], score["trained_on"]) == ("val", "train")


def test_a_file_is_not_exported_again(files):
    result = hwnas("export", files["fp32"]["path"])
    assert result.exit_code == EXIT_ERROR
    assert "is exported already" in result.stderr


def test_overlays_have_the_pictures_size_and_agree(run, files, picture, tmp_path):
    nets = {"run": run} | {name: values["path"] for name, values in files.items()}
    maps = {}
    for name, net in nets.items():
        found = said("predict", picture, "--net", net, "--out", tmp_path / name, "--maps")
        assert [file["frames"] for file in found["files"]] == [1]
        assert sum(found["classes"].values()) == pytest.approx(100)
        with Image.open(tmp_path / name / "street.png") as image:
            assert image.size == (70, 50)
        maps[name] = np.asarray(Image.open(tmp_path / name / "street.classes.png"))
    assert maps["run"].shape == (50, 70)
    for name in ("fp32", "classes"):
        assert (maps[name] == maps["run"]).mean() > 0.999


def test_pictures_are_not_overwritten(run, picture, tmp_path):
    result = hwnas("predict", picture, "--net", run, "--out", picture.parent)
    assert result.exit_code == EXIT_ERROR
    assert "holds the pictures themselves" in result.stderr
    (tmp_path / "street.jpg").write_bytes(picture.read_bytes())
    result = hwnas("predict", picture, tmp_path / "street.jpg", "--net", run, "--out", tmp_path / "out")
    assert result.exit_code == EXIT_ERROR
    assert "several of the pictures are called street" in result.stderr


def test_a_run_is_packed_shown_exported_and_predicts(run, picture, tmp_path):
    zoo = tmp_path / "zoo"
    about = ("--about", "a test", "--licence", "none: drawn", "--training-device", "a CPU")
    card = said("zoo", "pack", run, "tiny", "--out", zoo, *about)
    assert (card["name"], card["data"], card["split"]) == ("tiny", "synthetic", "train")
    assert card["latency"]["backend"] == "fake"
    shown = hwnas("zoo", "show", zoo / "tiny")
    assert "tiny: a test" in shown.output and "mIoU" in shown.output and "none: drawn" in shown.output
    assert said("zoo", "show", zoo / "tiny") == card
    exported = said("export", zoo / "tiny", "--out", tmp_path / "tiny.onnx")
    assert exported["size_bytes"] > 0
    # A card has the classes, so that nothing else is needed.
    found = said("predict", picture, "--net", zoo / "tiny", "--out", tmp_path / "a")
    again = said("predict", picture, "--net", tmp_path / "tiny.onnx", "--out", tmp_path / "b")
    assert found["classes"] == pytest.approx(again["classes"], abs=0.1)
    scored = said("eval", zoo / "tiny", *DATA)
    assert scored["miou"] == pytest.approx(card["scores"][0]["miou"], abs=1)


def test_a_network_of_the_zoo_is_measured_by_its_name():
    found = said("measure", "autortnet-c-camvid", "--backend", "fake", "--set", "rounds=1")
    assert found["median_ms"] > 0
    assert (found["network"], found["predicted_ms"]) == ("autortnet-c-camvid", None)


def test_the_zoo_is_listed():
    result = hwnas("zoo", "list")
    assert result.exit_code == 0
    assert result.stdout or "no network comes with this hwnas" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zoo", "show", "nosuch"], 'the zoo has no network "nosuch"; it has:'),
        (["eval", "nosuch", "--data", "synthetic"], "no run folder, no ONNX file and no network of the zoo"),
        (["eval", "nosuch"], 'no run folder, no ONNX file and no network of the zoo called "nosuch"'),
        (["eval", "autortnet-c-camvit"], "(did you mean autortnet-c-camvid?)"),
        (["export", "nosuch"], 'there is no run folder and no network of the zoo called "nosuch"'),
        (["predict", "x.png", "--net", "nosuch"], "no file or folder x.png"),
        (["eval", "none.onnx", "--data", "synthetic"], "no file none.onnx"),
        (["measure", "none.onnx"], "no file none.onnx"),
    ],
)
def test_a_name_that_is_none_is_a_sentence(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = hwnas(*arguments)
    assert result.exit_code == EXIT_ERROR
    assert message in result.stderr
    assert "Traceback" not in result.output
