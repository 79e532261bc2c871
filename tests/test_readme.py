"""What the README tells people to write works as written."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_library_example_runs_as_written():
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    solution = names["solution"]
    assert solution.failed == 0
    assert solution.x.shape == (1000, 2)


def test_every_file_that_it_names_is_there():
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path


def test_every_benchmark_and_config_in_its_commands_is_there():
    for module in re.findall(r"-m (benchmarks\.\w+)", README):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    for config in re.findall(r"--config=(configs/\S+?\.py)", README):
        assert (ROOT / config).exists(), config
