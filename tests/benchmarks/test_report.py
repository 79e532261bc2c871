"""The files that benchmarks write and the table of all; and every benchmark runs as its README says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks.convolution import operations
from benchmarks.report import Records, hash_of, machine, main, write_json

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "benchmarks" / "README.md").read_text()
SHARED = {"convolution", "distance", "mixture", "same_path"}  # by benchmarks
MODULES = sorted({path.stem for path in (ROOT / "benchmarks").glob("*.py")} - SHARED)


def test_the_table_names_every_figure_its_benchmark_and_the_machines(tmp_path, capsys):
    write_json(tmp_path / "driver.json", {"digits.overhead": 0.0312})
    write_json(tmp_path / "gpu.json", {"matmul.tflops": 700.0}, {"left_out": ["vp"]})
    other = {"figures": {"lanes.ratio": 1.25}, "machine": "another machine"}
    (tmp_path / "lanes.json").write_text(json.dumps(other))
    main([str(tmp_path)])
    printed = capsys.readouterr().out
    for row in (["digits.overhead", "0.0312", "driver"], ["lanes.ratio", "1.25", "lanes"]):
        assert re.search(r"\| +".join(re.escape(cell) + " +" for cell in row), printed)
    assert f"driver, gpu: {machine()}\n" in printed
    assert "lanes: another machine\n" in printed
    assert json.loads((tmp_path / "gpu.json").read_text())["left_out"] == ["vp"]


def test_a_folder_without_figures_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert (
        f"FOLDER must be a folder with files that --json wrote (got {str(tmp_path)!r}): "
        in capsys.readouterr().err
    )


def test_operations_are_counted_once_and_inserted_zeros_not_at_all():
    x, kernel = jnp.ones((2, 4, 4, 3)), jnp.ones((3, 3, 3, 5))

    def convolve(x, kernel, stride=1, dilation=1):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            [(1, 1)] * 2,
            lhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    at_each_pixel = 2 * (3 * 3 * 3 * 5)  # a multiplication and an addition each
    assert operations(convolve, x, kernel) == 2 * 16 * at_each_pixel
    assert operations(jax.jit(convolve), x, kernel) == 2 * 16 * at_each_pixel  # nested in a compiled function
    strided = jax.tree_util.Partial(convolve, stride=2)
    assert operations(strided, x, kernel) == 2 * 4 * at_each_pixel
    # 7 x 7 pixels with the zeros inserted, of which a quarter is not zero
    dilated = jax.tree_util.Partial(convolve, dilation=2)
    assert operations(dilated, x, kernel) == 2 * 49 * at_each_pixel / 4
    assert operations(jnp.matmul, jnp.ones((2, 3, 4)), jnp.ones((4, 5))) == 2 * 2 * 3 * 4 * 5


def test_records_are_measured_once_and_survive_a_kill(tmp_path):
    path, calls = tmp_path / "records.jsonl", []

    def measure():
        calls.append(1)
        return {"value": len(calls)}

    records = Records(path)
    assert records.of("a", measure) == records.of("a", measure) == {"value": 1, "identity": "a"}
    records.of("b", measure)
    path.write_text(path.read_text()[:-5])  # killed while it wrote
    records = Records(path)
    assert records.of("a", measure)["value"] == 1
    assert records.of("b", measure)["value"] == 3
    assert Records(path).of("b", measure)["value"] == 3
    assert len(calls) == 3


def test_an_identity_depends_on_all_that_it_is_made_of():
    identities = [hash_of("run", 1), hash_of("run", 2), hash_of("run", 1, "code"), hash_of("other", 1)]
    assert len(set(identities)) == 4
    assert hash_of("run", 1) == identities[0]


def test_the_readme_has_every_benchmark():
    for module in MODULES:
        assert f"-m benchmarks.{module}" in README, module
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / "benchmarks" / path).exists(), path


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_every_benchmark_is_called_the_same_way(module):
    command = [sys.executable, "-m", f"benchmarks.{module}", "--help"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "FOLDER" in done.stdout.upper() or "--json" in done.stdout


@pytest.mark.slow
def test_run_all_goes_on_after_one_that_fails_and_says_so(tmp_path):
    """The Python here fails in one benchmark, writes figures in another, and otherwise is the real one."""
    stub = tmp_path / "python"
    stub.write_text(
        "#!/usr/bin/env bash\n"
        'case "$*" in\n'
        '*benchmarks.driver*) echo "broken" >&2; exit 3 ;;\n'
        f'*benchmarks.network*) exec {sys.executable} -c "\n'
        "from pathlib import Path\n"
        "from benchmarks.report import write_json\n"
        f"write_json(Path('{tmp_path}/out/network.json'), {{'a.figure': 2.5}})\" ;;\n"
        f'*) exec {sys.executable} "$@" ;;\n'
        "esac\n"
    )
    stub.chmod(0o755)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHON": str(stub), "ONLY": "driver network"}
    command = ["bash", "benchmarks/run_all.sh", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("FAILED: driver\n")
    assert re.search(r"\| a.figure +\| 2.5 +\| network", done.stdout)
    assert "== lanes" not in done.stdout
