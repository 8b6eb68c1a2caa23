import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fpsde

PACKAGE = Path(fpsde.__file__).parent

LAYERS = [
    ["compiled", "mapped", "ranks", "threads"],
    ["taylor", "spline", "snapshots", "metrics", "files", "progress", "train", "evidence", "frame", "batches",
     "field", "forecast", "interruption", "memory", "simulation"],
    ["archive", "conditioner", "coordinates", "covariance", "model_file", "paths_file", "plane", "state_file"],
    ["given", "density", "checkpoints", "reading"],
    ["drift"],
    ["growth", "hollow", "potential", "time_step"],
    ["diffusion", "library", "mixture"],
    ["sde", "fokker_planck"],
    ["projection", "moments", "ensemble", "path", "screening"],
    ["config", "readouts", "assembly"],
    ["networks", "uncertainty"],
    ["identification", "identifiability", "arguments", "fingerprint"],
    ["fitted"],
    ["estimator"],
    ["description", "evaluation", "plotting"],
    ["cli", "__init__"],
    ["__main__"],
]
LAYER_OF = {name: layer for layer, names in enumerate(LAYERS) for name in names}
# The figures take an estimator but need it only as a type.
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))


def imports(path):
    tree = ast.parse(path.read_text())
    typing_only = {n for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
                   for n in ast.walk(node)}
    for node in ast.walk(tree):
        assert not getattr(node, "level", 0), "write imports in full: from fpsde.x import ..."
        if node in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fpsde":
            yield from [node.module.partition(".")[2]] if "." in node.module else [
                alias.name if alias.name in LAYER_OF else "__init__" for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "fpsde":
                    yield alias.name.partition(".")[2] or "__init__"


def test_relative_imports_do_not_go_unseen(tmp_path):
    for line in ("from .sde import FittedSDE", "from . import sde"):
        (tmp_path / "module.py").write_text(line)
        with pytest.raises(AssertionError, match="in full"):
            list(imports(tmp_path / "module.py"))


def test_every_module_has_a_layer():
    assert sorted(LAYER_OF) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_strictly_down_the_layers(module):
    for other in imports(PACKAGE / f"{module}.py"):
        assert LAYER_OF[other] < LAYER_OF[module], f"{module} imports {other}"


@pytest.mark.parametrize("module", [m for m in MODULES if m != "__main__"])
def test_modules_say_what_is_public(module):
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    assert ast.get_docstring(tree)
    assert any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__" for node in tree.body)


def test_modules_stay_short():
    lengths = sorted(len((PACKAGE / f"{m}.py").read_text().splitlines()) for m in MODULES)
    assert lengths[len(lengths) // 2] <= 200
    assert lengths[-1] <= 400


def test_import_loads_no_optional_package():
    code = "import sys, fpsde; print([m for m in ('ot', 'anndata', 'h5py', 'matplotlib.pyplot') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
