import subprocess
import sys
from importlib import metadata

import pytest

from command import install_toy
from milr import registry
from milr.drafts import UserError


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(install_toy(tmp_path)))
    assert metadata.version("toy-milr") == "1.0"


def test_parts_are_the_files_of_the_folder_in_order_of_their_names():
    names = [part.name for part in registry.parts("search")]
    assert names == sorted(names)
    assert {"milr", "single", "best-of-n"} <= set(names)
    milr = registry.find("search", "milr")
    assert milr.module == "milr.searches.latent"
    assert {"paper", "official"} <= set(milr.presets)
    assert "\n" not in milr.summary
    assert milr.summary


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_own_part_loads_under_the_name_it_is_listed_by(kind):
    for part in registry.parts(kind):
        module = registry.load(part)
        if kind != "model":
            assert (part.name, part.summary) == (module.NAME, module.SUMMARY)
        if kind == "search":
            assert set(module.PRESETS) == set(part.presets)
            assert all(isinstance(preset, module.SETTINGS) for preset in module.PRESETS.values())


def test_listing_imports_nothing_heavy(tmp_path):
    install_toy(tmp_path)
    code = (
        "import sys; from milr import registry\n"
        "listed = [part.name for kind in registry.KINDS for part in registry.parts(kind)]\n"
        "assert {'lab', 'milr', 'toy', 'redness'} <= set(listed), listed\n"
        "heavy = {'torch', 'transformers', 'numpy', 'toy_milr', 'milr.searches.latent'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": _path(tmp_path)})


def _path(site):
    from command import ROOT

    return f"{ROOT / 'src'}:{ROOT / 'tests'}:{site}"


def test_foreign_parts_join_by_entry_point(toy):
    part = registry.find("critic", "redness")
    assert (part.summary, part.origin) == ("likes red corners, for tests", "toy-milr")
    assert registry.load(part).make(None).name == "redness"
    assert registry.find("model", "toy").summary == "coloured blocks, for tests"


def test_a_foreign_part_that_breaks_names_its_package(toy):
    with pytest.raises(UserError, match=r"critic 'broken' of package 'toy-milr' .*missing_library"):
        registry.load(registry.find("critic", "broken"))


def test_own_parts_cannot_be_replaced_from_outside(tmp_path, monkeypatch):
    site = install_toy(tmp_path)
    (site / "toy_milr-1.0.dist-info" / "entry_points.txt").write_text("[milr.searches]\nmilr = toy_milr.critic\n")
    monkeypatch.syspath_prepend(str(site))
    assert registry.find("search", "milr").origin == ""
    assert [part.name for part in registry.parts("search")].count("milr") == 1


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mlir", "Did you mean 'milr'?"),
        ("Best-Of-N", "Did you mean 'best-of-n'?"),
        ("zzzz", "search 'zzzz'. 'milr list"),
    ],
)
def test_unknown_names_get_the_nearest(name, hint):
    with pytest.raises(UserError) as error:
        registry.find("search", name)
    assert hint in str(error.value)


def test_messages_quote_neither_control_signs_nor_megabytes():
    quoted = registry.shorten("\x1b[31mred\x1b[0m \u202eevil " + "x" * 10_000)
    assert len(quoted) <= 60
    assert quoted.startswith("\ufffd[31mred\ufffd[0m \ufffdevil xxx")
