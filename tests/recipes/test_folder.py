"""Whose a folder is: one recipe's, or none's."""

import os
import signal

import pytest

from hwnas.errors import CheckpointError, Interrupted, InvalidInput
from hwnas.recipes import Recipe, Stage

from .two_stages import RECIPE, STREETS, TARGET, fitted, run


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
