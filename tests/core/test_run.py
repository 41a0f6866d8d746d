import os
import signal

import pytest
import torch
from torch import nn

from hwnas.core.run import FINDERS, Averages, Run
from hwnas.core.runlog import RunLog, read_log
from hwnas.errors import CheckpointError, Interrupted, InvalidInput


def train(out, *, epochs=3, resume=False, every_steps=0, stop_at=None, identity=None, by="exception"):
    """Random numbers added up: the state and the random generators decide what comes out."""
    total = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(total.weight)
    loader = torch.utils.data.DataLoader(torch.arange(6.0), batch_size=2, shuffle=True)
    averages = Averages()
    parts = {"total": total, "averages": averages}
    torch.manual_seed(0)
    seen = []
    with Run(out, "sum", identity or {"n": {"a": 1}}, parts, resume=resume, every_steps=every_steps) as run:
        for epoch in run.epochs(epochs):
            for batch in run.batches(loader):
                if stop_at == run.step:
                    if by == "exception":
                        raise ZeroDivisionError
                    os.kill(os.getpid(), by)
                with torch.no_grad():
                    total.weight += (batch * torch.rand(2)).sum() + float(torch.rand(()))
                averages.add(batch=float(batch[0]))
                seen.append(batch.tolist())
                run.log.write("step", step=run.step, total=float(total.weight.detach()))
            run.log.write("epoch", epoch=epoch, **averages.means())
            averages.clear()
    return float(total.weight.detach()), seen


def test_a_run_without_a_folder_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("every_steps", [1, 2, 3])
@pytest.mark.parametrize("stop_at", range(1, 9))
def test_a_run_that_broke_anywhere_goes_on_bit_for_bit(tmp_path, every_steps, stop_at):
    whole, batches = train(tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "broken", stop_at=stop_at, every_steps=every_steps)
    resumed, rest = train(tmp_path / "broken", resume=True, every_steps=every_steps)
    assert resumed == whole
    assert rest == batches[len(batches) - len(rest) :]
    assert read_log(tmp_path / "broken/sum.log.jsonl") == read_log(tmp_path / "whole/sum.log.jsonl")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_between_steps_and_saves(tmp_path, number):
    whole, _ = train(tmp_path / "whole")
    with pytest.raises(
        Interrupted, match=r"stopped in epoch 2 after 5 steps; saved in .*sum\.checkpoint\.pt"
    ):
        train(tmp_path / "stopped", stop_at=4, by=number)
    resumed, rest = train(tmp_path / "stopped", resume=True)
    assert resumed == whole
    assert len(rest) == 4
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_without_a_folder_says_that_nothing_is_kept():
    with pytest.raises(Interrupted, match="saved in nowhere: the run has no folder"):
        train(None, stop_at=1, by=signal.SIGTERM)


def test_a_finished_run_resumes_to_nothing(tmp_path):
    whole, _ = train(tmp_path)
    assert train(tmp_path, resume=True) == (whole, [])


def test_a_folder_in_use_is_not_overwritten(tmp_path):
    train(tmp_path)
    with pytest.raises(InvalidInput, match=r"holds a sum already\. Go on with it \(--resume; resume=True\)"):
        train(tmp_path)


@pytest.mark.parametrize("name", FINDERS)
@pytest.mark.parametrize("begun", FINDERS)
def test_what_finds_networks_keeps_out_of_each_others_folders(tmp_path, begun, name):
    """Each would replace the table and the choice of data of the other."""
    (tmp_path / f"{begun}.json").write_text("{}")
    with pytest.raises(InvalidInput, match=f"holds a {begun} already"):
        Run(tmp_path, name, {}, {}, resume=False)
    assert [path.name for path in tmp_path.iterdir()] == [f"{begun}.json"]
    # What trains what was found is at home there.
    with Run(tmp_path, "fit", {}, {}, resume=False):
        assert (tmp_path / "fit.json").exists()


def test_resuming_before_the_first_checkpoint_begins_anew(tmp_path):
    whole, batches = train(tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "broken", stop_at=1)
    assert train(tmp_path / "broken", resume=True) == (whole, batches)


def test_resuming_needs_a_folder():
    with pytest.raises(InvalidInput, match="resume=True needs the folder"):
        train(None, resume=True)


def test_a_checkpoint_of_another_run_is_refused_with_the_difference(tmp_path):
    train(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        train(tmp_path, resume=True, identity={"n": {"a": 2}, "m": "new"})
    message = str(caught.value)
    assert "  m: checkpoint None, asked 'new'\n  n.a: checkpoint 1, asked 2\n" in message
    assert "another folder (--out)" in message


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        ({"name": "a", "batch": 8}, {"name": "a", "batch": 8}, False),
        ({"name": "a", "batch": 8}, {"name": "a", "batch": 4}, True),
        # Who did not describe the data, as older checkpoints, has said nothing about them.
        (None, {"name": "a"}, False),
        ({"name": "a"}, None, False),
        ("absent", {"name": "a"}, False),
    ],
)
def test_data_are_compared_where_both_describe_them(tmp_path, first, second, refused):
    train(tmp_path, identity={"n": 1} | ({} if first == "absent" else {"data": first}))
    if refused:
        with pytest.raises(CheckpointError, match=r"\n  data\.batch: checkpoint 8, asked 4\n"):
            train(tmp_path, resume=True, identity={"n": 1, "data": second})
        return
    train(tmp_path, resume=True, epochs=4, identity={"n": 1, "data": second})
    # What is known of them is not forgotten by a resume that does not say it.
    with pytest.raises(CheckpointError, match=r"data\.name: checkpoint 'a', asked 'b'"):
        train(tmp_path, resume=True, identity={"n": 1, "data": {"name": "b"}})


def test_what_a_run_is_must_be_json(tmp_path):
    with pytest.raises(InvalidInput, match="what a run is must be JSON"):
        train(tmp_path, identity={"data": {"loader": object()}})


def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(CheckpointError, match="says nothing about more: another version of hwnas wrote it"):
        Run(tmp_path, "sum", {"n": {"a": 1}}, {"averages": Averages(), "more": Averages()}, resume=True)


def test_a_log_line_has_no_word_for_nan(tmp_path):
    with RunLog(tmp_path / "log.jsonl", tensorboard=False) as log:
        log.write("step", loss=float("nan"), deep={"x": [float("inf"), 1.5]})
    assert read_log(tmp_path / "log.jsonl") == [{"event": "step", "loss": None, "deep": {"x": [None, 1.5]}}]


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"event": "a"}\n{"eve')
    assert read_log(path) == [{"event": "a"}]
    assert read_log(tmp_path / "none.jsonl") == []


def test_averages():
    averages = Averages()
    averages.add(x=1.0, y=2.0)
    averages.add(x=2.0)
    assert averages.means() == {"x": 1.5, "y": 2.0}
    averages.clear()
    assert averages.means() == {}
