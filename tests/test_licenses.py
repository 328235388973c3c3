import pytest
import yaml
from typer.testing import CliRunner

from hf_zip import cli
from hf_zip.licenses import License, common_license, license_warnings
from hf_zip.report import read
from hf_zip.save import MARKER
from tests.models import vit


def models(*names):
    return {f"m{i}": License(name) if name else None for i, name in enumerate(names)}


@pytest.mark.parametrize(
    ("names", "common"),
    [
        (("mit", "MIT"), License("mit")),
        (("mit",), License("mit")),
        (("mit", "apache-2.0"), None),
        (("mit", None), None),
        ((None, "mit"), None),
        (("other", "other"), None),
        (("Unknown", "Unknown"), None),
    ],
)
def test_the_common_licence(names, common):
    assert common_license([*models(*names).values()]) == common


def test_a_text_elsewhere_is_another_licence():
    first = License("x", False, "a")
    assert common_license([first, first]) == first
    assert common_license([first, License("x", False, "b")]) is None


def test_nothing_is_said_of_models_without_licences_or_with_one_that_asks_for_nothing():
    assert license_warnings(models(None, None)) == []
    assert license_warnings(models("mit", "mit")) == []


def test_licences_that_differ_are_told():
    (warning,) = license_warnings(models("mit", None, "apache-2.0"))
    assert "('m0' states mit; 'm1' states none; 'm2' states apache-2.0)" in warning
    assert "under 'license' in the recipe (--license)" in warning


@pytest.mark.parametrize(
    ("name", "term"),
    [
        ("cc-by-nd-4.0", "forbids publishing adapted works"),
        ("CC-BY-NC-4.0", "forbids commercial use"),
        ("cc-by-sa-4.0", "asks that adapted works have the same licence"),
        ("agpl-3.0", "asks that adapted works have the same licence"),
    ],
)
def test_what_a_licence_asks_for_is_told_even_where_all_have_it(name, term):
    (warning,) = license_warnings(models(name, name))
    assert warning.lower() == f"the licence of 'm0', 'm1', {name.lower()}, {term}"
    assert len(license_warnings(models(name, "mit"))) == 2


def test_a_merge_warns_and_a_choice_is_kept(tmp_path):
    for name, label, stated in (("a", "cat", "mit"), ("b", "oak", "cc-by-nc-4.0")):
        vit(names=[label]).save_pretrained(tmp_path / name)
        (tmp_path / name / "README.md").write_text(f"---\nlicense: {stated}\n---\n")
    command = ["merge", str(tmp_path / "a"), str(tmp_path / "b"), "--method", "average"]
    command += ["--out", str(tmp_path / "out"), "--force"]
    assert CliRunner().invoke(cli.app, command).exit_code == 0
    findings = " ".join(read(tmp_path / "out").findings)
    assert "'a' states mit; 'b' states cc-by-nc-4.0" in findings
    assert "the licence of 'b', cc-by-nc-4.0, forbids commercial use" in findings
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license:" not in card.split("---")[1]
    assert CliRunner().invoke(cli.app, [*command, "--license", "cc-by-nc-4.0"]).exit_code == 0
    assert "license: cc-by-nc-4.0" in (tmp_path / "out" / "README.md").read_text().split("---")[1]
    assert yaml.safe_load((tmp_path / "out" / MARKER).read_text())["license"] == "cc-by-nc-4.0"
