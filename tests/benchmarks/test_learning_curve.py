"""benchmarks/learning_curve.py on the files of a training that was killed and resumed."""

import dataclasses
import json
import sys

import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from benchmarks import learning_curve
from evaluation.runs import results

Event, SessionLog = (getattr(event_pb2, name) for name in ("Event", "SessionLog"))


def _write(path, first, losses):
    writer = RecordWriter(str(path))
    begin = Event(step=first, session_log=SessionLog(status=SessionLog.START))
    reports = [Event(step=step, summary=scalar("loss", loss)) for step, loss in losses.items()]
    rates = [Event(step=step, summary=scalar("images_per_second", 7.0)) for step in losses]
    for event in (begin, *reports, *rates):
        writer.write(event.SerializeToString())
    writer.close()


@pytest.fixture
def training(tmp_path):
    folder = tmp_path / "training"
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "training.json").write_text(json.dumps({"training.batch_size": 10}))
    _write(folder / "tensorboard" / "events.1", 1, {100: 8.0, 200: 4.0, 300: 99.0})
    _write(folder / "tensorboard" / "events.2", 201, {300: 2.0, 400: 1.0})
    return folder


def test_the_losses_are_those_of_the_steps_that_counted(training):
    assert learning_curve.losses(training / "tensorboard") == {100: 8.0, 200: 4.0, 300: 2.0, 400: 1.0}


def test_an_event_that_a_kill_cut_off_is_left_out(training):
    path = training / "tensorboard" / "events.2"
    whole = list(learning_curve.events(path.read_bytes()))
    for cut in (1, 4, 5, 20):  # into the checksum, and into the event
        assert list(learning_curve.events(path.read_bytes()[:-cut])) == whole[:-1]


def test_a_table_and_a_picture(training, tmp_path, monkeypatch, capsys):
    fields = {field.name: None for field in dataclasses.fields(results.Result)}
    for step, fid in ((100, 300.0), (400, 30.0)):
        (tmp_path / "runs" / f"step_{step:08d}").mkdir(parents=True)
        line = {"config_hash": "0", **fields, "fid": fid, "is_mean": 2.0, "num_samples": 1000}
        line |= {"reference": "cifar10:train:50000", "features": "cifar10:12"}
        (tmp_path / "runs" / f"step_{step:08d}" / "results.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "runs" / "step_00000900").mkdir()  # a run that is not finished
    (tmp_path / "runs" / "step_00000900" / "results.jsonl").write_bytes(b"")
    plot = tmp_path / "curve.png"
    flags = ["--training", str(training), "--runs", str(tmp_path / "runs"), "--plot", str(plot)]
    monkeypatch.setattr(sys, "argv", ["learning_curve", *flags, "--json", str(tmp_path / "curve.json")])
    learning_curve.main()
    *_, first, last = (line.split()[1::2] for line in capsys.readouterr().out.splitlines())
    assert first == ["1,000", "8.0000", "300.00", "2.00"]
    assert last == ["4,000", "1.0000", "30.00", "2.00"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "curve.json").read_text())["figures"]["400.fid"] == 30.0


def test_a_folder_without_runs_is_refused(training, tmp_path, monkeypatch, capsys):
    flags = ["--training", str(training), "--runs", str(tmp_path / "none")]
    monkeypatch.setattr(sys, "argv", ["learning_curve", *flags])
    with pytest.raises(SystemExit):
        learning_curve.main()
    assert "--runs must be a folder with finished runs named step_N" in capsys.readouterr().err
