"""The report of a workdir: what it says of good and bad workdirs, and how it looks in a browser."""

import base64
import hashlib
import html
import io
import json
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from PIL import Image

import configs
import solvers
from evaluation.runs import likelihood, results
from evaluation.runs.report import again, charts, contents, page
from evaluation.runs.sweep import with_settings
from evaluation.store.samples import Samples, SampleStore
from models import checkpoints
from tests import commands

VOID = {"meta", "link", "img", "br"}


class Parsed(HTMLParser):
    """A page's elements with their attributes and text; refuses tags that do not close."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_endtag(self, tag):
        assert self.elements[self._open.pop()][0] == tag
        if tag not in ("span", "code"):
            self.handle_data(" ")

    def handle_data(self, data):
        for number in self._open:
            self.elements[number][2].append(data)

    def texts(self, tag: str, **attributes: str) -> list[str]:
        """Of the elements with this tag and these attributes."""
        return [
            " ".join("".join(text).split())
            for name, found, text in self.elements
            if name == tag and attributes.items() <= {key.rstrip("_"): v for key, v in found.items()}.items()
        ]

    def attributes(self, name: str) -> list[str]:
        return [value for _, found, _ in self.elements if (value := found.get(name)) is not None]


def png(folder: Path, name: str = "samples.png") -> str:
    """Writes a picture; returns it as a page holds it."""
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "white").save(file, format="PNG")
    (folder / name).write_bytes(file.getvalue())
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def weights(config: Any) -> str:
    return checkpoints.checkpoint_sha256(checkpoints.find(config.model.checkpoint))


def identified(name: str, settings: dict[str, Any], sha256: str | None = None) -> tuple[dict[str, Any], str]:
    config = with_settings(configs.load(name), settings)
    solver = solvers.from_config(config.solver, config.solver_defaults)
    return results.config_identity(config, solver=solver, checkpoint_sha256=sha256 or weights(config))


def make_cell(
    folder: Path, settings: dict[str, Any] | None = None, *, name="vp/digits_adaptive", **figures
) -> dict:
    """A folder with an identity and a result, as a run leaves them."""
    identity, config_hash = identified(name, settings or {})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "identity.json").write_text(json.dumps(identity))
    result = {
        "config_hash": config_hash,
        "checkpoint_sha256": identity["checkpoint_sha256"],
        "git_commit": "c0ffee",
        "features": "digits:feed",
        "reference": "digits:train:1797",
        "num_samples": 128,
        "fid": 1.25,
        "is_mean": 6.5,
        "is_std": 0.25,
        "fid_interval": [1.0, 1.5],
        "nfe_mean": 50.5,
        "nfe_max": 70,
        "failed": 0,
        "devices": "cpu x 1",
        "versions": {"jax": "0.10"},
        "config": name,
        "checkpoint": "digits_vp",
        **figures,
    }
    with (folder / "results.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")
    return result


def keep_samples(folder: Path, nfe: list[int]) -> None:
    _, config_hash = results.hashed(json.loads((folder / "identity.json").read_text()))
    counts = np.array(nfe, np.int32)
    with SampleStore(folder / "samples", config_hash=config_hash, shard_size=4) as store:
        store.add(
            Samples(
                sample_ids=np.arange(len(nfe)),
                images=np.zeros((len(nfe), 8, 8, 1), np.uint8),
                **dict.fromkeys(("nfe", "accepted", "rejected", "status"), counts),
            )
        )


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != page.PAGE]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


def report(folder: Path) -> Parsed:
    """The report's elements; nothing else in the folder has changed, and the page needs nothing else."""
    before = files(folder)
    path = page.write(epath.Path(folder))
    assert path == epath.Path(folder) / "report.html"
    assert files(folder) == before
    assert not [path for path in folder.rglob(".*") if path.is_file()]  # no temporary file is left
    text = path.read_text()
    parsed = Parsed(text)
    assert {value[:5] for name in ("src", "href") for value in parsed.attributes(name)} <= {"data:", "#mark"}
    assert not re.search(r"@import|url\(|https?://", text)
    return parsed


# --- a run ---


def test_a_run_shows_its_samples_figures_costs_and_what_made_it(tmp_path):
    result = make_cell(tmp_path, nfe_interval=[49.9, 51.1])
    picture = png(tmp_path)
    keep_samples(tmp_path, [40, 41, 41, 60, 62])
    shown = report(tmp_path)
    assert shown.texts("h1") == ["vp/digits_adaptive"]
    assert shown.attributes("src") == [picture]
    assert all(shown.attributes("alt"))
    cards = shown.texts("div", **{"class": "card"})
    assert cards[0].startswith("FID 1.250 95 % interval 1.000 to 1.500, for infinitely many samples")
    assert cards[1].startswith("Inception Score 6.50 ± 0.25 How sure")
    assert cards[2].startswith("Evaluations a sample (NFE) 50.5 95 % interval 49.9 to 51.1, for infinitely")
    bars = [title for title in shown.texts("title") if "of 5" in title]
    assert [bar for bar in bars if not bar.startswith("0 ")] == [
        "3 of 5: 40 to 42 evaluations",
        "1 of 5: 58 to 60 evaluations",
        "1 of 5: 61 to 62 evaluations",
    ]
    facts = dict(zip(shown.texts("dt"), shown.texts("dd"), strict=True))
    assert facts["Commit of the code"] == "c0ffee"
    assert facts["Checkpoint"] == f"digits_vp, SHA-256 {result['checkpoint_sha256']}"
    assert facts["Versions"] == "jax 0.10"
    assert facts["Devices"] == "cpu x 1"
    assert facts["solver.name"] == "adaptive"
    assert facts["nfe_max"] == "70"


def test_steps_are_shown_where_a_trace_is_and_otherwise_the_command_is(tmp_path):
    make_cell(tmp_path, {"solver.eps_rel": 0.5})
    made = "python main.py --config=configs/vp/digits_adaptive.py --config.solver.eps_rel=0.5"
    asked = f"{made} --config.eval.num_samples=128 --mode=trace --workdir={tmp_path}"
    assert asked in report(tmp_path).texts("code")
    picture = png(tmp_path, "trace.png")
    shown = report(tmp_path)
    assert asked not in shown.texts("code")
    assert shown.attributes("src") == [picture]


def test_samples_of_equally_many_evaluations_need_no_histogram(tmp_path):
    make_cell(tmp_path)
    keep_samples(tmp_path, [21] * 5)
    assert "Each of the 5 samples that are kept took 21 evaluations." in report(tmp_path).texts("p")


def test_results_of_other_numbers_of_samples_stand_beside_each_other(tmp_path):
    make_cell(tmp_path, num_samples=64, fid=2.5)
    make_cell(tmp_path)
    shown = report(tmp_path)
    assert "This is the newest of 2 results." in shown.texts("p", **{"class": "lead"})[0]
    assert shown.texts("th", scope="row") == ["adaptive, samples 64", "adaptive, samples 128"]


def test_the_command_names_the_data_that_the_samples_were_compared_with(tmp_path):
    given: Any = {"data.path": "my digits", "data.split": "test", "eval.reference": "mine.npz"}
    make_cell(tmp_path, **given)
    flags = [f"--config.{key}={value}" for key, value in given.items()]
    commands_shown = [shlex.split(text) for text in report(tmp_path).texts("code")]
    assert any(set(flags) <= set(words) for words in commands_shown)


def test_images_from_another_source_and_likelihoods_have_reports(tmp_path):
    (tmp_path / "images").mkdir()
    line = {
        "config_hash": "aa",
        "images": "my digits.zip",
        "num_samples": 30,
        "fid": 3.5,
        "features": "digits:f",
    }
    (tmp_path / "images" / "results.jsonl").write_text(json.dumps(line) + "\n")
    shown = report(tmp_path / "images")
    assert shown.texts("p", **{"class": "lead"}) == ["30 images of my digits.zip, measured like samples."]
    assert "python main.py --config=CONFIG '--images=my digits.zip'" in shown.texts("code")

    config = with_settings(configs.load("vp/digits_adaptive"), {"likelihood.rtol": 0.01})
    of = {"images": "digits:train:1797", "images_sha256": "ff", "checkpoint_sha256": weights(config)}
    identity, config_hash = likelihood.identity_of(config, **of)
    (tmp_path / "likelihood").mkdir()
    (tmp_path / "likelihood" / "likelihood.json").write_text(json.dumps(identity))
    line = {"config_hash": config_hash, "num_images": 40, "config": "vp/digits_adaptive", **of}
    line |= {"bits_per_dim": 3.25, "bits_per_dim_interval": [3.0, 3.5]}
    (tmp_path / "likelihood" / "results.jsonl").write_text(json.dumps(line) + "\n")
    shown = report(tmp_path / "likelihood")
    assert shown.texts("div", **{"class": "card"})[0].startswith(
        "Bits per dimension 3.250 95 % interval 3.000 to 3.5"
    )
    assert (
        "python main.py --mode=likelihood --config=configs/vp/digits_adaptive.py "
        "--config.likelihood.rtol=0.01 --config.eval.num_samples=40 --config.data.split=train"
    ) in shown.texts("code")


# --- the command ---


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vp/digits_adaptive", {}),
        ("ve/digits_adaptive", {"solver.eps_rel": 0.1, "seed": 3}),
        ("ve/digits_adaptive", {"solver.name": "heun", "solver.num_steps": 7, "solver.grid": "uniform_t"}),
        ("ve/digits_adaptive", {"solver.name": "heun", "solver.rho": 5.0}),
        ("vp/digits_adaptive", {"solver.name": "predictor_corrector", "solver.predictor": "euler_maruyama"}),
        ("vp/digits_adaptive", {"solver.name": "edm", "solver.churn": 4.0, "solver.denoise": False}),
        ("vp/digits_adaptive", {"sde.name": "cosine_vp", "sde.s": 0.02}),
        ("vp/digits_classes", {"guidance.scale": 2.5, "eval.classes": "3"}),
        ("vp/digits_adaptive", {"model.ch_mult": (1, 2, 2), "model.attn_resolutions": (4,)}),
    ],
    ids=str,
)
def test_the_command_has_the_settings_that_were_changed_and_no_other(name, settings):
    identity, config_hash = identified(name, settings)
    result = {"config": name, "config_hash": config_hash, "checkpoint_sha256": identity["checkpoint_sha256"]}
    count = configs.load(name).eval.num_samples
    measured = {"num_samples": count, "features": "digits:f"}
    line, fill_in = again.command(result | measured, json.loads(json.dumps(identity)))
    words = shlex.split(line)
    assert words[:3] == ["python", "main.py", f"--config=configs/{name}.py"]
    assert sorted(words[3:]) == sorted(f"--config.{key}={value}" for key, value in settings.items())
    assert fill_in == ""


def test_the_command_says_what_was_measured_and_by_which_weights(tmp_path):
    identity, config_hash = identified("vp/digits_adaptive", {}, "other")
    result = {"config": "vp/digits_adaptive", "config_hash": config_hash, "checkpoint_sha256": "other"}
    result |= {"num_samples": 7, "checkpoint": "mine"}
    line, fill_in = again.command(result | {"features": None}, identity)
    assert shlex.split(line)[2] == "--mode=sample"
    assert shlex.split(line)[-2:] == ["--config.eval.num_samples=7", "--checkpoint=CHECKPOINT"]
    assert fill_in == "CHECKPOINT: the path of mine, SHA-256 other"
    further = {"features": "inception_64:f", "compared": 50, "fid_infinity": 1.0}
    words = shlex.split(again.command(result | further, identity)[0])
    assert {
        "--config.eval.features=inception_64",
        "--config.eval.compared=50",
        "--config.eval.fid_infinity=True",
    } < set(words)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"config": "mine/own"}, "config 'mine/own' does not take its settings"),
        ({"config": "../secret"}, r"config must be one of configs/ \(got '../secret'\)"),
        ({"config": None}, r"config must be one of configs/ \(got None\)"),
        ({"config_hash": "0"}, r"config 'vp/digits_adaptive' with the run's settings must be of this hash"),
        ({"config": "ve/digits_adaptive"}, "with the run's settings must be of this hash"),
    ],
)
def test_a_command_that_is_not_known_for_certain_is_not_given(changed, message, tmp_path):
    result = make_cell(tmp_path) | changed
    identity = json.loads((tmp_path / "identity.json").read_text())
    if changed.get("config") == "ve/digits_adaptive":  # whose settings it takes, but for one that is no key
        identity["a.key"] = "of another version"
        result["config_hash"] = results.hashed(identity)[1]
    with pytest.raises(ValueError, match=message):
        again.command(result, identity)
    (tmp_path / "results.jsonl").write_text(json.dumps(result) + "\n")
    assert any(said.startswith("The command is not known: ") for said in report(tmp_path).texts("p"))


# --- a sweep, a table ---


@pytest.fixture
def sweep(tmp_path) -> Path:
    """Two tolerances of two seeds each, and another solver with two numbers of steps on two grids."""
    cells = [{"solver.eps_rel": eps_rel, "seed": seed} for eps_rel in (0.02, 0.1) for seed in (1, 0)]
    heun = {"solver.name": "heun"}
    cells += [
        heun | {"solver.num_steps": n, "solver.grid": grid} for n in (5, 10) for grid in ("edm", "uniform_t")
    ]
    for number, settings in enumerate(cells):
        folder = tmp_path / "cells" / f"cell-{number}"
        make_cell(folder, settings, nfe_mean=float(10 + 10 * number), fid=float(number + 1))
        png(folder)
    made_by = "    python main.py --mode=sweep '--sweep=seed=0,1'\n"
    (tmp_path / "sweep.md").write_text("# Sweep of vp/digits_adaptive\n\n| a |\n\n" + made_by)
    return tmp_path


def test_a_sweep_shows_every_cell_with_its_identity(sweep):
    shown = report(sweep)
    assert shown.texts("h1") == ["Sweep of vp/digits_adaptive"]
    assert shown.texts("li") == ["adaptive", "heun, grid edm, rho 7", "heun, grid uniform_t"]
    assert shown.texts("th", scope="row") == [
        "adaptive, eps_rel 0.02",
        "adaptive, eps_rel 0.1",
        "heun, grid edm, rho 7, num_steps 5",
        "heun, grid edm, rho 7, num_steps 10",
        "heun, grid uniform_t, num_steps 5",
        "heun, grid uniform_t, num_steps 10",
    ]
    assert shown.texts("td")[:6] == ["15.0 ± 7.1", "1.500 ± 0.707", "6.50 ± 0.00", "128", "0", "2"]
    points = [title for title in shown.texts("title") if " at " in title]
    assert len(points) == 8
    assert points[0].startswith("adaptive, eps_rel 0.02, seed 0: FID 2.000 at 20.0 evaluations, hash ")
    # every point names the entry that has its identity and its command
    targets = shown.attributes("data-target")
    assert sorted(targets) == sorted(f"cell-{number}" for number in range(8))
    entries = dict(
        zip(
            shown.attributes("id")[len(charts.MARKS) :], shown.texts("div", **{"class": "brief"}), strict=True
        )
    )
    for point, target in zip(points, targets, strict=True):
        name, config_hash = point.partition(": ")[0], point.rpartition(" ")[2]
        assert entries[target].startswith(f"Settings {name}")
        assert f"Config hash {config_hash}" in entries[target]
        assert "c0ffee" in entries[target]
        assert "python main.py --config=configs/vp/digits_adaptive.py" in entries[target]
    assert "python main.py --mode=sweep --sweep=seed=0,1" in shown.texts("code")
    assert len(shown.attributes("src")) == page.PICTURED


def test_a_table_shows_the_published_numbers_and_what_is_absent(tmp_path):
    (tmp_path / "table_1.md").write_text(
        "# Table 1: CIFAR-10\n\n    python main.py --mode=reproduce --table=1\n"
    )
    header = "model,method,seeds,nfe_published,fid_published,published_confirmed,absent\n"
    rows = "VP,DDIM,0,50,36.4,True,no weights\nVE,RK45,0,49,72.29,False,no weights\nVE,other,0,,,,\n"
    (tmp_path / "table_1.csv").write_text(header + rows)
    shown = report(tmp_path)
    assert shown.texts("h1") == ["Table 1: CIFAR-10"]
    points = [title for title in shown.texts("title") if " at " in title]
    assert points == [
        "Published: VP, DDIM: FID 36.40 at 50 evaluations",
        "Published, unconfirmed: VE, RK45: FID 72.29 at 49 evaluations",
    ]
    assert dict(zip(shown.texts("dt"), shown.texts("dd"), strict=True)) == {
        "VP, DDIM": "no weights",
        "VE, RK45": "no weights",
    }
    assert "python main.py --mode=reproduce --table=1" in shown.texts("code")


# --- bad input ---


def test_a_cell_that_failed_is_named_and_the_others_are_shown(sweep):
    (sweep / "cells" / "cell-0" / "results.jsonl").write_text("not a result\n{}\n")
    (sweep / "cells" / "cell-1" / "results.jsonl").unlink()
    keep_samples(sweep / "cells" / "cell-1", [1, 2, 3])
    (sweep / "cells" / "cell-2" / "identity.json").write_text("{")
    (sweep / "cells" / "cell-3" / "results.jsonl").unlink()
    (sweep / "cells" / "cell-3" / "identity.json").unlink()
    shown = report(sweep)
    assert len([title for title in shown.texts("title") if " at " in title]) == 4
    reasons = dict(zip(shown.texts("dt"), shown.texts("dd"), strict=True))
    assert "line 1 of" in reasons["cells/cell-0"]
    assert reasons["cells/cell-1"] == "It is not finished: 3 samples are kept."
    assert "must be settings in JSON (got b'{')" in reasons["cells/cell-2"]
    assert reasons["cells/cell-3"] == "It is not finished: 0 samples are kept."
    assert "4 cells with a result, 4 without one." in shown.texts("p", **{"class": "lead"})[0]


def test_failed_samples_and_cells_without_a_place_in_the_plot_are_said(sweep):
    make_cell(sweep / "cells" / "cell-0", fid=None, failed=3)
    make_cell(sweep / "cells" / "cell-1", fid=0.0)
    shown = report(sweep)
    caption = next(text for text in shown.texts("p", **{"class": "caption"}) if "cheaper" in text)
    assert caption.endswith("Results without a FID and evaluations above zero have no place here: 2.")
    assert "3" in shown.texts("td")


def test_a_result_measured_again_is_no_second_seed(tmp_path):
    make_cell(tmp_path, fid=3.0)
    make_cell(tmp_path, fid=2.5, fid_infinity=2.0)
    make_cell(tmp_path, fid=9.0, reference_content="other images of the same name")
    rows = contents.rows_of(contents.read(epath.Path(tmp_path)).own)
    assert sorted((row.mean("fid"), len(row.cells)) for row in rows) == [(2.5, 1), (9.0, 1)]


def test_a_torn_last_line_is_left_out_and_said(tmp_path):
    make_cell(tmp_path)
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"config_hash": "torn", "fi')
    shown = report(tmp_path)
    said = "The last line of results.jsonl is torn by an interruption, and is left out."
    assert said in shown.texts("p", **{"class": "warning"})
    assert shown.texts("div", **{"class": "card"})[0].startswith("FID 1.250")


def test_a_run_that_was_killed_before_its_result_has_a_page(tmp_path):
    make_cell(tmp_path)
    keep_samples(tmp_path, [5, 6])
    (tmp_path / "results.jsonl").write_text('{"config_h')
    (tmp_path / "samples" / "shard_000001.npz").write_bytes(b"damaged")
    (tmp_path / "samples.png").write_bytes(b"no picture")
    shown = report(tmp_path)
    assert shown.texts("p", **{"class": "lead"}) == [
        "There is no result yet; 2 samples are kept. The same command goes on where it was."
    ]
    warnings = shown.texts("p", **{"class": "warning"})
    assert "Files in samples/ that cannot be read or are of another config: 1." in warnings
    assert "samples.png cannot be read as a picture." in warnings


@pytest.mark.parametrize("value", [[1], {"a": 1}, "1.5", True, "<b>", 10**400, None])
def test_figures_of_other_types_make_a_page_all_the_same(value, tmp_path):
    keys = (
        "fid",
        "fid_interval",
        "nfe_mean",
        "is_std",
        "failed",
        "versions",
        "num_samples",
        "checkpoint",
        "config",
    )
    for number, key in enumerate(keys):
        make_cell(tmp_path / "cells" / str(number), {"seed": number}, **{key: value})
        make_cell(tmp_path, **{key: value})
    report(tmp_path)
    shutil.rmtree(tmp_path / "cells")
    report(tmp_path)


def test_a_thousand_cells_make_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(again, "command", lambda result, identity: ("python main.py", ""))
    identity, _ = identified("vp/digits_adaptive", {})
    for number in range(1000):
        folder = tmp_path / "cells" / f"{number:04d}"
        folder.mkdir(parents=True)
        own = identity | {"solver.eps_rel": number // 2 / 1000, "seed": number % 2}
        (folder / "identity.json").write_text(json.dumps(own))
        line = {
            "config_hash": f"{number:04d}",
            "config": "c",
            "fid": 1 + number,
            "nfe_mean": 1000 - number // 2,
        }
        (folder / "results.jsonl").write_text(json.dumps(line) + "\n")
    text = page.page(epath.Path(tmp_path), contents.read(epath.Path(tmp_path)))
    assert text.count('data-target="cell-') == 1000
    assert text.count('<th scope="row"') == 500
    assert len(text) < 4e6


EVIL = "<script>alert('&\"$title')<\u2215script>"  # a name of a folder, which has no slash


def test_text_of_configs_and_paths_cannot_run(tmp_path):
    folder = tmp_path / EVIL / "run"
    for number in range(2):
        place = folder / "cells" / (EVIL + str(number))
        make_cell(place, {"seed": number}, checkpoint=EVIL, git_commit=EVIL, features=EVIL, fid=1.0 + number)
        result = json.loads((place / "results.jsonl").read_text()) | {"config": EVIL, EVIL: EVIL}
        (place / "results.jsonl").write_text(json.dumps(result) + "\n")
    (folder / "sweep.md").write_text(f"# {EVIL}\n\n    {EVIL}\n")
    (folder / "table_1.md").write_text(f"# {EVIL}\n")
    columns = "seeds,nfe_published,fid_published,published_confirmed,absent"
    (folder / "table_1.csv").write_text(
        f'model,{columns}\n"{EVIL.replace(chr(34), chr(34) * 2)}",1,2,3,True,{EVIL}\n'
    )
    shown = report(folder)
    assert [tag for tag, *_ in shown.elements].count("script") == 1
    assert not [name for _, attributes, _ in shown.elements for name in attributes if name.startswith("on")]
    assert shown.texts("h1") == [f"{EVIL}, {EVIL}"]
    assert shown.texts("title")[0] == f"Report of a table: {EVIL}, {EVIL}"


def test_the_page_forbids_every_script_but_its_own_and_every_connection(tmp_path):
    make_cell(tmp_path)
    page.write(epath.Path(tmp_path))
    text = (tmp_path / "report.html").read_text()
    (script,) = re.findall(r"<script>(.*)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert rules["img-src"] == "data:"


def test_the_same_workdir_makes_the_same_page(sweep):
    report(sweep)
    first = (sweep / "report.html").read_bytes()
    report(sweep)
    assert (sweep / "report.html").read_bytes() == first


def test_somebody_elses_page_is_kept(tmp_path):
    make_cell(tmp_path)
    (tmp_path / "report.html").write_text("<!doctype html><p>mine")
    with pytest.raises(
        ValueError, match=r"content of .*report.html must be an earlier report .*: move it away"
    ):
        page.write(epath.Path(tmp_path))
    assert (tmp_path / "report.html").read_text() == "<!doctype html><p>mine"


def test_a_workdir_on_an_object_store_has_a_report(folder, tmp_path):
    make_cell(tmp_path)
    for name in ("identity.json", "results.jsonl"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((tmp_path / name).read_bytes())
    assert "FID" in page.write(folder).read_text()


def test_the_command_line_writes_the_page(sweep):
    done = commands.main("--mode=report", f"--workdir={sweep}")
    assert (done.returncode, done.stdout) == (0, f"{sweep}/report.html\n"), done.stderr
    assert (sweep / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--workdir must be the folder of a run, a sweep or a table (got None): add --workdir=DIR"),
        (["--workdir=FOLDER"], "--workdir must be the folder of a run, a sweep or a table (got '"),
        (["--workdir=FOLDER/absent"], "--workdir must be the folder of a run, a sweep or a table (got '"),
        (["--workdir=FOLDER/notes.txt"], "--workdir must be a folder, not a file"),
        (["--workdir=FOLDER", "--checkpoint=a"], "--checkpoint must be absent with --mode=report"),
        (["--workdir=BROKEN"], "line 1 of "),
    ],
)
def test_a_folder_that_is_no_workdir_is_refused(arguments, message, tmp_path):
    for name in ("folder", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("somebody's own")
    (tmp_path / "broken" / "results.jsonl").write_text("1\n2\n")
    before = files(tmp_path)
    places = {"FOLDER": tmp_path / "folder", "BROKEN": tmp_path / "broken"}
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    refused = commands.main("--mode=report", *arguments)
    assert refused.returncode == 2
    assert message in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr
    assert files(tmp_path) == before
    assert not list(tmp_path.rglob("report.html"))


# --- charts ---


def shares(made: charts.Element, tag: str, *names: str) -> list[tuple[float, ...]]:
    """Places in a chart, from 0 to 1."""
    return [tuple(float(each.attrib[name].rstrip("%")) / 100 for name in names) for each in made.iter(tag)]


def test_points_lie_where_their_logarithms_do():
    corners = [(10.0, 4.0), (100.0, 2.0), (1000.0, 1.0)]
    points = [charts.Point(x=x, y=y, says="", target="") for x, y in corners]
    made = charts.scatter(
        [charts.Series(label="", points=points, line=corners)], says="", x_name="", y_name=""
    )
    (x, y) = zip(*shares(made, "use", "x", "y"), strict=True)
    assert 0 < x[0] < x[2] < 1
    assert 0 < y[0] < y[2] < 1  # the largest above
    assert x[1] == pytest.approx((x[0] + x[2]) / 2, abs=1e-4)  # two digits of a percentage
    assert y[1] == pytest.approx((y[0] + y[2]) / 2, abs=1e-4)


@pytest.mark.parametrize(
    "values", [[20.0], [20.0, 20.5], [0.001, 0.002], [1.0, 9.0], [1e-6, 1e6], [999.0, 1001.0]], ids=str
)
def test_an_axis_has_a_few_numbers_within_it(values):
    points = [charts.Point(x=value, y=1.0, says="", target="") for value in values]
    made = charts.scatter([charts.Series(label="", points=points)], says="", x_name="", y_name="")
    along = [each for each in made.iter("text") if each.attrib["text-anchor"] == "middle"]
    assert 2 <= len(along) <= 8
    assert len({each.text for each in along}) == len(along)
    assert all(0 <= float(each.attrib["x"].rstrip("%")) <= 100 for each in along)


@pytest.mark.parametrize("nfe", [[5, 6], [1, 1000], list(range(100)), [10] * 500 + [400]], ids=len)
def test_the_bars_of_a_histogram_hold_every_number_once(nfe):
    made = charts.histogram(np.array(nfe), says="", x_name="", unit="evaluations")
    titles = [title.text or "" for title in made.iter("title")]
    bars = [re.fullmatch(r"([\d,]+) of [\d,]+: (\d+)(?: to (\d+))? evaluations", title) for title in titles]
    assert len(bars) <= charts.BINS + 1
    for found in filter(None, bars):
        low, high = int(found[2]), int(found[3] or found[2])
        assert int(found[1]) == sum(low <= each <= high for each in nfe)
    assert sum(int(found[1]) for found in bars if found) == len(nfe)


# --- in a browser ---

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Scripts that are put into a page to look at it: errors, what is too wide, and what the points of charts say
ERRORS = """
<script>
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
addEventListener("securitypolicyviolation", (event) => errors.push(event.violatedDirective));
</script>
"""
LOOK = """
<script>
addEventListener("load", () => {
  const said = [];
  for (const figure of document.querySelectorAll("figure:has(.plot)")) {
    const spots = [...figure.querySelectorAll(".spot")];
    const box = () => (figure.querySelector(".inspector") ?? figure.querySelector(".readout")).textContent;
    spots.at(-1).dispatchEvent(new PointerEvent("pointerenter"));
    said.push(box());
    const first = spots.find((spot) => spot.getAttribute("tabindex") === "0");
    first.focus();
    first.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
    said.push(box());
  }
  const { color, backgroundColor } = getComputedStyle(document.body);
  const copies = document.querySelectorAll(".copy").length;
  const needed = document.documentElement.scrollWidth;
  const found = { errors, width: innerWidth, needed, said, copies, color, backgroundColor };
  parent.postMessage(JSON.stringify(found), "*");
});
</script>
"""
# Chromium's own window has at least 500 pixels
FRAME = """<!doctype html>
<iframe src="page.html" width="WIDTH" height="900" style="border: 0"></iframe>
<pre></pre>
<script>
addEventListener("message", (event) => (document.querySelector("pre").textContent = event.data));
</script>
"""


def looked_at(path: Path, place: Path, *, width: int, dark: bool) -> dict[str, Any]:
    """What Chromium finds in a page of this width."""
    text = path.read_text()
    # for the scripts of the test, and for nothing else
    text = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", text)
    text = text.replace("<style>", ERRORS + "<style>", 1).replace("</body>", LOOK + "</body>")
    (place / "page.html").write_text(text)
    (place / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
    command = [
        str(CHROMIUM),
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--dump-dom", f"--window-size={width + 100},1000", f"--user-data-dir={place}/profile"),
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        (place / "frame.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"<pre>(.+?)</pre>", done.stdout, flags=re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


def contrast(*colours: str) -> float:
    """Of two colours such as "rgb(1, 2, 3)", by the definition of WCAG 2."""
    light = []
    for colour in colours:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        light.append(float(np.dot(linear, [0.2126, 0.7152, 0.0722])) + 0.05)
    return max(light) / min(light)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")
@pytest.mark.parametrize(("width", "dark"), [(400, False), (1600, True)])
def test_a_browser_shows_it_at_any_width_in_light_and_dark(width, dark, sweep, tmp_path):
    run = tmp_path / "run with a rather long name"
    make_cell(run)
    png(run)
    keep_samples(run, [40, 41, 41, 60, 62])
    for folder, said in ((sweep, "Config hash"), (run, "of 5: ")):
        page.write(epath.Path(folder))
        found = looked_at(folder / "report.html", tmp_path, width=width, dark=dark)
        assert found["errors"] == []
        assert found["width"] == width
        assert found["needed"] <= width
        assert len(found["said"]) == 2
        assert all(said in text for text in found["said"])
        assert found["said"][0] != found["said"][1]
        assert found["copies"] >= 2
        assert contrast(found["color"], found["backgroundColor"]) > 7
        lightness = sum(map(int, re.findall(r"\d+", found["backgroundColor"])[:3])) / 3
        assert (lightness < 60) == dark


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_its_colours_can_be_told_from_what_they_are_on(scheme):
    """4.5 for text and 3 for marks, by WCAG 2."""
    style = page.TEMPLATE.with_suffix(".css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    found = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", dark if scheme == "dark" else light))
    colours = {
        name: f"rgb({', '.join(str(int(value[i : i + 2], 16)) for i in (1, 3, 5))})"
        for name, value in found.items()
    }
    for paper in ("paper", "card", "code"):
        for name in ("ink", "faint", "accent", "warn"):
            assert contrast(colours[name], colours[paper]) > 4.5, (name, paper)
    for name in [*(f"series-{number}" for number in range(charts.COLOURS)), "bar"]:
        assert contrast(colours[name], colours["card"]) > 3, name
