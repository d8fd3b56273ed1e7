"""Tests of the source code: import layers, unsafe calls, side effects of importing, and lengths."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import latentlab

pytestmark = pytest.mark.fixed

PACKAGE = Path(latentlab.__file__).parent
ORDER = [
    *(
        "errors",
        "registry",
        "notebook",
        "progress",
        "settings",
        "seeds",
        "files",
        "processes",
        "executors",
        "data",
        "symmetry",
        "distributions",
        "models",
        "embeddings",
        "compare",
        "inference",
        "results",
    ),
    *(
        "fit",
        "calibration",
        "correspondences",
        "comparison",
        "store",
        "report",
        "tracking",
        "study",
        "sweeps",
        "cli",
    ),
]


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def layer(module_name):
    parts = module_name.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(source):
    """`(dotted name, line)` of everything imported outside `if TYPE_CHECKING`, inside functions too."""
    tree = ast.parse(source)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import in line {node.lineno}"
            for alias in node.names:
                path = PACKAGE.parent.joinpath(*node.module.split("."), f"{alias.name}.py")
                yield (f"{node.module}.{alias.name}" if path.is_file() else node.module, node.lineno)


def offences(path, source):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    found = []
    for name, line in imports(source):
        if not name.startswith("latentlab"):
            continue
        other = layer(name)
        if not other and own != "__init__":
            found.append(f"{path.name}:{line} imports from the package root")
        elif own in ORDER and other in ORDER and ORDER.index(other) > ORDER.index(own):
            found.append(f"{path.name}:{line} ({own}) imports {name}, which comes later")
    return found


def test_a_module_imports_only_from_those_above_it():
    assert [one for path in modules() for one in offences(path, path.read_text(encoding="utf-8"))] == []


def module_name(path):
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def import_order(sources):
    """Sorts modules so that each comes after its imports; raises an error for cycles."""
    graph = {name: {found for found, _ in imports(source) if found in sources} for name, source in sources.items()}
    return list(graphlib.TopologicalSorter(graph).static_order())


def test_there_are_no_import_cycles():
    sources = {module_name(path): path.read_text(encoding="utf-8") for path in modules()}
    assert len(import_order(sources)) == len(sources)
    planted = {**sources, "latentlab.compare.positions": "from latentlab.compare.metric import metric"}
    with pytest.raises(graphlib.CycleError):
        import_order(planted)


def test_every_module_belongs_to_a_layer():
    assert {p.relative_to(PACKAGE).with_suffix("").parts[0] for p in modules()} <= {*ORDER, "__init__", "__main__"}


def test_the_imports_check_detects_a_planted_import():
    path = PACKAGE / "compare" / "metric.py"
    assert "comes later" in offences(path, "from latentlab.fit import Fit")[0]
    assert (
        "package root" in offences(path, "from latentlab import fit")[0]
        or "comes later" in offences(path, "from latentlab import fit")[0]
    )
    assert "package root" in offences(path, "import latentlab as ll")[0]
    with pytest.raises(AssertionError, match="relative import"):
        offences(path, "from . import lift")


def test_arviz_is_imported_in_one_module():
    """The import writes into the user's folders and warns once a day; `results.arviz` prevents both."""
    files = [*modules(), *Path(__file__).parent.rglob("*.py")]
    found = [path.name for path in files if "arviz" in {name.split(".")[0] for name, _ in imports(path.read_text("utf-8"))}]
    assert found == ["arviz.py"]


FORBIDDEN = {
    "compare": {"torch", "pyro", "arviz"},
    "symmetry": {"torch", "pyro", "arviz"},
    "models": {"arviz"},
    "data": {"torch", "pyro", "arviz"},
}


@pytest.mark.parametrize("folder", sorted(FORBIDDEN))
def test_numerical_folders_do_not_import_data_structures(folder):
    for path in (PACKAGE / folder).glob("*.py"):
        roots = {name.split(".")[0] for name, _ in imports(path.read_text(encoding="utf-8"))}
        assert not roots & FORBIDDEN[folder], path.name


def unsafe(source):
    """Yields calls that execute file content, and asserts, which `python -O` drops."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert):
            found.append(f"{node.lineno}: assert")
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in ("eval", "exec", "os.system", "pickle.load", "pickle.loads", "torch.load", "joblib.load", "pd.read_pickle"):
            found.append(f"{node.lineno}: {called}")
        if called.endswith(("yaml.load", "yaml.unsafe_load", "yaml.full_load")):
            found.append(f"{node.lineno}: {called}")
        for keyword in node.keywords:
            if (keyword.arg, ast.unparse(keyword.value)) in (
                ("allow_pickle", "True"),
                ("shell", "True"),
                ("weights_only", "False"),
            ):
                found.append(f"{node.lineno}: {keyword.arg}={ast.unparse(keyword.value)}")
    return found


KNOWN = [("entry.py", "exec"), ("python_code.py", "exec"), ("signature.py", "eval")]
"""Annotations in the source of the installed package itself are evaluated, as `typing.get_type_hints` does; `exec("")` does no
more than clear a flag of the interpreter. `python_code` executes text that it writes itself from a recorded graph: names of
operations of torch, numbers and lists, and nothing of a file or of a user."""


def test_no_unsafe_function_is_called():
    found = [(path.name, call.split(": ")[1]) for path in modules() for call in unsafe(path.read_text(encoding="utf-8"))]
    assert found == KNOWN


@pytest.mark.parametrize(
    "source", ["pickle.load(f)", "np.load(p, allow_pickle=True)", "eval(x)", "assert x", "yaml.load(t, Loader)"]
)
def test_the_unsafe_call_check_detects_a_planted_call(source):
    assert unsafe(source)


def in_a_new_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_loads_no_slow_library_and_changes_no_state():
    code = """
import random, sys, warnings, logging
import numpy as np
state, filters, handlers = str(np.random.get_state()), list(warnings.filters), list(logging.root.handlers)
before = random.getstate()
import latentlab
heavy = sorted({"torch", "pyro", "sklearn", "pandas", "xarray", "arviz", "matplotlib", "scipy"} & set(sys.modules))
same = (str(np.random.get_state()), list(warnings.filters), list(logging.root.handlers), random.getstate())
print(heavy, same == (state, filters, handlers, before))
"""
    assert in_a_new_process(code) == "[] True"


def test_a_closed_form_fit_imports_no_slow_library():
    """Importing one of these libraries takes as long as the fit."""
    code = """
import sys
sys.modules["dask"] = None  # if Dask is installed, xarray imports it with parts of SciPy
import latentlab as ll
ll.fit(ll.models.PPCA(2), ll.load_dataset("wine", drop_constant=True), ll.Exact(), progress=False)
slow = {"torch._dynamo", "torch._inductor", "sympy", "sklearn", "scipy.stats", "scipy.optimize", "scipy.sparse"}
slow |= {"arviz", "numba", "matplotlib"}
print(sorted(slow & set(sys.modules)))
"""
    assert in_a_new_process(code) == "[]"


def test_public_names_exist_and_are_not_hidden_by_modules():
    code = """
import latentlab as ll
import latentlab.fit, latentlab.comparison.compare
for name in ll.__all__:
    getattr(ll, name)
print(callable(ll.fit), callable(ll.compare), callable(ll.embed), ll.models.PPCA.__name__)
"""
    assert in_a_new_process(code) == "True True True PPCA"


MOST_LINES = 400
MOST_CODE = 60
MOST_ARGUMENTS = 7


def test_no_module_is_too_long():
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert {name: n for name, n in lengths.items() if n > MOST_LINES} == {}


def long_functions(source):
    """Yields functions with many lines of code, or many arguments, and no comment with the reason in their first lines."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            code = node.end_lineno - node.lineno + 1 - (len(docstring.splitlines()) if docstring else 0)
            given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            n = len([argument for argument in given if argument.arg not in ("self", "cls")])
            head = lines[node.lineno - 1 : node.body[0].lineno - 1] or [lines[node.lineno - 1]]
            if (code > MOST_CODE or n > MOST_ARGUMENTS) and not any("  # " in line for line in head):
                yield node.name


def test_long_functions_state_a_reason():
    found = {path.name: list(long_functions(path.read_text(encoding="utf-8"))) for path in modules()}
    assert {name: functions for name, functions in found.items() if functions} == {}
    assert list(long_functions("def f(a, b, c, d, e, f, g, h):\n    pass\n")) == ["f"]
    assert list(long_functions("def f(  # options of a user's\n    a, b, c, d, e, f, g, h\n):\n    pass\n")) == []


ENTERED = """
import sys
import latentlab as ll

def count(task):
    entered = set()
    sys.setprofile(lambda frame, event, _: entered.add(frame.f_code.co_filename) if event == "call" else None)
    try:
        task()
    finally:
        sys.setprofile(None)
    return len({path for path in entered if path.startswith(sys.argv[1])})

data, model, method = ll.load_dataset("wine"), ll.models.PPCA(2), ll.NUTS(n_chains=2, n_warmup=20, n_draws=30)
fitting = lambda: ll.fit(model, data, method, progress=False)
fit, pca = fitting(), ll.embed("pca", data)
comparing = lambda: ll.compare(fit, [pca], metrics=("cka",), progress=False)
comparing()
print(count(fitting), count(comparing))
"""
"""Counts the files of the package that a second fit and a second comparison enter; first calls also load modules."""


def test_a_fit_and_a_comparison_enter_few_files():
    """Limits the number of files in the call paths of a fit of PPCA and of a comparison with one metric."""
    printed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ENTERED, str(PACKAGE)], capture_output=True, text=True, check=True
    ).stdout
    fit, comparison = map(int, printed.split())
    assert 10 < fit <= 44
    assert 10 < comparison <= 36
