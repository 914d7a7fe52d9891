"""The wheel that `pip install .` makes holds everything that `milr` needs away from this folder."""

import subprocess
import sys
import zipfile

import pytest

from command import ROOT

pytest.importorskip("hatchling")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    code = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_code_data_and_notices(wheel):
    names = {file.relative_to(wheel).as_posix() for file in wheel.rglob("*") if file.is_file()}
    sources = {file.relative_to(ROOT / "src").as_posix() for file in (ROOT / "src" / "milr").rglob("*.py")}
    assert sources <= names
    for name in ("lab/sprites.png", "lab/weights/config.json", "lab/weights/model.safetensors",
                 "lab/weights/tokenizer.json", "runs/templates/trajectory.html",
                 "reports/templates/report.html", "py.typed"):  # fmt: skip
        assert f"milr/{name}" in names
    assert {name.rsplit("/", 1)[-1] for name in names if "dist-info/licenses/" in name} == {
        "LICENSE",
        "NOTICE",
        "THIRD_PARTY.md",
    }
    assert not [name for name in names if name.endswith((".pt", ".bin", ".pkl", ".pickle"))]
    weights = (wheel / "milr" / "lab" / "weights" / "model.safetensors").stat().st_size
    assert weights <= 16 * 10**6


def test_the_wheel_runs_from_another_folder(wheel, tmp_path):
    (script,) = wheel.glob("*.dist-info/entry_points.txt")
    assert "milr = milr.cli:main" in script.read_text()
    run = subprocess.run(
        [sys.executable, "-m", "milr", "lab", "prompts", "--n", "2"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(run.stdout.splitlines()) == 2
