"""Processes that share a folder draw one device's samples, and share the work evenly."""

import numpy as np
import pytest

from benchmarks.processes import deviation, main, measure


def test_deviation_is_the_largest_from_equal_shares():
    assert deviation(np.array([5, 5, 5])) == 0
    assert deviation(np.array([90, 100, 110])) == pytest.approx(0.1)
    assert deviation(np.array([0, 4])) == 1


def test_fewer_shards_than_processes_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--num_samples=2048", "--shard_size=1024"])
    assert "--shard_size must be at most 512 (got 1024): " in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_draw_what_one_device_draws():
    figures, _ = measure(num_samples=2048, shard_size=512, devices=(1, 2), processes=(2,))
    for name in ("devices_1", "devices_2", "processes_2"):
        assert figures[f"{name}.bitwise_equal"] == 1
    # the mean over 1,024 samples differs from that over all by a few tenths of a percent
    assert figures["processes_2.own_deviation"] < 0.03
    assert figures["processes_2.calls_deviation"] < 1  # both took part
