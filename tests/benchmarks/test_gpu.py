"""The benchmark for GPUs on a small network: all parts run, and are left out when the time is short."""

import json

import jax
import pytest

from benchmarks.gpu import NETWORKS, Parts, fitting, main

OF_A_NETWORK = [
    "bfloat16.batch_size",
    "bfloat16.evaluations_per_second",
    "bfloat16.share_of_matmul",
    "batch_size",
    "overhead",
    "samples_per_second",
    "nfe_mean",
    "lane_utilization",
    "share_of_ten_longest",
    "float32.batch_size",
    "float32.evaluations_per_second",
    "float32.share_of_matmul",
]


@pytest.mark.slow
def test_a_small_network_goes_through_all_parts(tmp_path, capsys):
    assert main(["--tiny", "--seconds", "1000", "--json", str(tmp_path / "gpu.json")]) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["left_out"] == []
    assert report["failed"] == {}
    of_networks = {f"{name}.{figure}" for name in NETWORKS for figure in OF_A_NETWORK}
    assert set(report["figures"]) == {"matmul.bfloat16.tflops", "matmul.float32.tflops"} | of_networks
    # only the overhead can be below 0, by noise
    assert all(value > 0 for name, value in report["figures"].items() if not name.endswith("overhead"))
    printed = capsys.readouterr().out
    for name in NETWORKS:
        shares = [share for _, _, share in report["longest"][name]]
        assert len(shares) == 10
        assert sum(shares) == pytest.approx(report["figures"][f"{name}.share_of_ten_longest"])
        assert f"| kernels of {name} " in printed


def test_without_time_everything_is_left_out_and_said(tmp_path, capsys):
    assert main(["--tiny", "--seconds", "0", "--json", str(tmp_path / "gpu.json")]) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["figures"] == {}
    assert report["left_out"] == ["matmul", *(f"{name} in bfloat16 at batch 2" for name in NETWORKS)]
    assert "matmul: left out, as it may take 0 s" in capsys.readouterr().out


def test_a_part_that_fails_is_named_and_the_next_one_runs(tmp_path):
    def fails():
        raise RuntimeError("no such kernel")

    parts = Parts(seconds=100, path=tmp_path / "gpu.json")
    assert not parts.run("first", fails)
    assert parts.run("second", lambda: {"a": 1.0})
    assert not parts.run("third", lambda: {"b": 1.0}, seconds=101)
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["figures"] == {"a": 1.0}
    assert report["failed"] == {"first": "RuntimeError: no such kernel"}
    assert report["left_out"] == ["third"]


def test_a_batch_that_does_not_fit_is_halved():
    """Whether JAX reports it or an error that JAX's caused; other errors are raised."""
    tried = []

    def task(size):
        tried.append(size)
        if size > 8:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        if size > 4:
            try:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
            except jax.errors.JaxRuntimeError as error:
                raise ValueError("batch_size must be what fits (got 8): halve it") from error
        return "done"

    assert fitting(16, task) == (4, "done")
    assert tried == [16, 8, 4]

    def fails(size):
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        fitting(16, fails)


def test_a_machine_without_a_gpu_is_refused(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "the device must be a GPU or TPU that JAX sees (got 'cpu'): " in capsys.readouterr().err
