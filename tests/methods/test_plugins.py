"""Methods of other packages: found by their entry points, held to the same matrix, and never in the way of anyone else's."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from finelens.bench.rows.origin import versions
from finelens.commands.new_method import write_package
from finelens.errors import UserError
from finelens.methods import plugins
from finelens.methods.method import Method
from finelens.methods.registry import METHODS as OWN
from finelens.methods.registry import all_methods, find_method
from finelens.testing import CHECKS, check_entry, check_hints

# The whole matrix, for METHODS of this module.
from tests.methods.test_matrix import *  # noqa: F403

SOURCE = Path(__file__).parent / "plugin"
sys.path.insert(0, str(SOURCE))
from finelens_toys import METHODS as TOYS  # noqa: E402

sys.path.remove(str(SOURCE))
# What ``finelens new-method nearest-mean`` writes passes the matrix as it is.
METHODS = [Method("nearest-mean", "solver", "Text logits and class means of the text posterior.", "finelens_nearest_mean.solver:NearestMean"), *TOYS]


def write_distribution(folder: Path, name: str, entry_points: dict[str, str]) -> Path:
    """Metadata of an installed package. Returns ``folder``."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{key} = {value}" for key, value in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[finelens.methods]", *lines, ""]))
    return folder


def install_scaffold(site: Path) -> Path:
    """What ``pip install`` of a new package does. Returns ``site``."""
    write_package("nearest-mean", site / "package")
    shutil.copytree(site / "package" / "src" / "finelens_nearest_mean", site / "finelens_nearest_mean")
    entry = tomllib.loads((site / "package" / "pyproject.toml").read_text())["project"]["entry-points"]["finelens.methods"]
    return write_distribution(site, "finelens-nearest-mean", entry)


@pytest.fixture(autouse=True, scope="module")
def _installed(tmp_path_factory):
    site = install_scaffold(tmp_path_factory.mktemp("site"))
    shutil.copytree(SOURCE / "finelens_toys", site / "finelens_toys")
    write_distribution(site, "finelens-toys", {"toys": "finelens_toys:METHODS"})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        plugins.find_plugins.cache_clear()
        yield
    plugins.find_plugins.cache_clear()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package with one module and one entry point on the path."""

    def put(name: str, code: str, target: str) -> None:
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(code)
        write_distribution(tmp_path, name, {"methods": target})
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, module, raising=False)
        plugins.find_plugins.cache_clear()

    yield put
    plugins.find_plugins.cache_clear()


def test_methods_of_other_packages_come_after_our_own():
    assert all_methods() == (*OWN, *METHODS)
    assert {method.family for method in METHODS} == {"text", "views", "solver", "self-training", "few-shot"}
    assert find_method("toy-solver").config_class(weight=2.0).weight == 2.0


def test_a_function_may_give_the_methods(install):
    code = "from finelens.methods.registry import Method\ndef give():\n    return Method('given', 'text', 'One.', 'finelens.methods.zero_shot')\n"
    install("gives-one", code, "gives_one:give")
    assert find_method("given").build is find_method("zero-shot").build


def test_rows_of_the_benchmark_name_the_package_and_its_code(install, tmp_path):
    assert not {"package", "package_code"} & set(versions("stata"))
    found = versions("nearest-mean")
    assert (found["package"], len(found["package_code"])) == ("finelens-nearest-mean 1.0", 16)
    code = "from finelens.methods.registry import Method\nMETHOD = Method('given', 'text', 'One.', 'gives_one')\n"
    install("gives-one", code, "gives_one:METHOD")
    first = versions("given")
    assert first["package"] == "gives-one 1.0"
    (tmp_path / "gives_one.py").write_text(code + "# another state\n")
    assert versions("given")["package_code"] != first["package_code"]


BROKEN = {
    "an import fails": ("import no_such_module", r"package bad-one: its methods \(bad_one:METHODS\) are left out: ModuleNotFoundError"),
    "it leaves": ("raise SystemExit(3)", "package bad-one: .* SystemExit"),
    "nothing is there": ("", "package bad-one: .* AttributeError"),
    "no methods": ("METHODS = ['stata']", "package bad-one: .* TypeError: expected finelens.methods.registry.Method .* got 'stata'"),
    "no family": (
        "from finelens.methods.registry import Method\nMETHODS = Method('x', 'magic', 'One.', 'm')",
        "package bad-one: .* family of method x must be one of text, views, .* got 'magic'",
    ),
    "a name of ours": (
        "from finelens.methods.registry import Method\nMETHODS = Method('stata', 'text', 'One.', 'm')",
        "package bad-one: its method stata is left out: finelens has one of that name",
    ),
    "a name of another's": (
        "from finelens.methods.registry import Method\nMETHODS = Method('toy-text', 'text', 'One.', 'm')",
        "package .*: its method toy-text is left out: .* has one of that name",
    ),
    "a word of ours": (
        "from finelens.methods.registry import Method\nMETHODS = Method('auto', 'text', 'One.', 'm')",
        "package bad-one: its method auto is left out",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_package_that_cannot_be_used_is_named_and_left_out(install, caplog, case):
    code, message = BROKEN[case]
    install("bad-one", code, "bad_one:METHODS")
    assert sorted(method.name for method in all_methods()) == sorted(method.name for method in (*OWN, *METHODS))
    assert re.search(message, caplog.text)
    assert find_method("stata").family == "solver"
    with pytest.raises(UserError, match=message):
        find_method("something-quite-different")


def test_an_unknown_method_says_where_others_are_looked_for(install):
    install("gives-none", "METHODS = []", "gives_none:METHODS")
    with pytest.raises(UserError, match=r"unknown method 'somebodys'.* entry point 'finelens.methods' .*gives-none.*install the package"):
        find_method("somebodys")


def test_the_command_line_lists_them_without_torch_and_survives_a_broken_package(tmp_path):
    shutil.copytree(SOURCE / "finelens_toys", tmp_path / "finelens_toys")
    write_distribution(tmp_path, "finelens-toys", {"toys": "finelens_toys:METHODS"})
    write_distribution(tmp_path, "broken", {"methods": "no_such_module:METHODS"})
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from click.testing import CliRunner; from finelens.cli import cli\n"
        "print(CliRunner().invoke(cli, ['--help']).exit_code, 'finelens_toys' in sys.modules)\n"
        "result = CliRunner().invoke(cli, ['methods']); print(result.exit_code, 'torch' in sys.modules); print(result.output)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("0 False\n0 False\n")
    assert "toy-few-shot" in done.stdout
    assert "package broken: its methods (no_such_module:METHODS) are left out" in done.stdout


def test_the_page_shows_what_the_command_writes(tmp_path):
    write_package("nearest-mean", tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
    shown = re.findall(r"```(?:python|toml)\n(.*?)```", text, re.S)
    written = [path.read_text(encoding="utf-8") for path in sorted(tmp_path.rglob("*")) if path.suffix in (".py", ".toml")]
    assert len(shown) == 4
    for block in shown:
        assert any(block in file for file in written), block


def test_the_checks_of_a_new_package_pass_and_can_fail(tmp_path, install):
    for check in CHECKS:
        check("nearest-mean")
    write_package("deaf", tmp_path / "deaf")
    code = (tmp_path / "deaf" / "src" / "finelens_deaf" / "solver.py").read_text().replace("known.clamp(", "(")
    install(
        "deaf-one",
        f"{code}\nfrom finelens.methods.registry import Method\nMETHOD = Method('deaf', 'solver', 'One.', 'deaf_one:Deaf')\n",
        "deaf_one:METHOD",
    )
    with pytest.raises(AssertionError, match=r"use known\.clamp"):
        check_hints("deaf")
    with pytest.raises(AssertionError, match="of solvers"):
        check_entry("toy-text")


def test_options_of_a_new_method(tiny_vit):
    _, first, _ = fit_toy(tiny_vit, "nearest-mean", pictures())  # noqa: F405
    _, second, _ = fit_toy(tiny_vit, "nearest-mean", pictures(), options={"method": {"weight": 2.0}})  # noqa: F405
    assert not torch.equal(first.model.task.coef_, second.model.task.coef_)  # noqa: F405
    with pytest.raises(UserError, match=r"method\.weight must be at least 0 and finite, got -1\.0"):
        prepare_toy(tiny_vit, "nearest-mean", options={"method": {"weight": -1.0}})  # noqa: F405
