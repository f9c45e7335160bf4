"""The rules of docs/architecture.md, checked on the syntax tree of every source file."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "cellxpert"
TESTS = ROOT / "tests"

MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 80
MAX_POSITIONAL = 3

ANYWHERE = {"errors"}
"""Leaves that every unit may import."""
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "keys": set(),
    "config": set(),
    "batch": set(),
    "nn": {"config", "batch"},
    "steering": {"config"},
    "metrics": set(),
    "ontology": set(),
    "pl": {"keys", "metrics"},
    "datasets": {"keys"},
    "genome": set(),
    "data": {"genome", "keys", "config", "batch"},
    "training": {"nn", "data", "ontology", "config", "batch"},
    "tasks": {"nn", "data", "steering", "metrics", "ontology", "config", "batch"},
    "files": set(),
    "adapters": {"config", "data", "files"},
    "checkpoint": {"adapters", "nn", "data", "config", "files"},
    "exchange": {"tasks", "checkpoint", "nn", "data", "ontology", "keys"},
    "labelling": {"tasks", "training", "checkpoint", "nn", "data", "ontology", "keys"},
    "base": {"data", "terms"},
    "terms": {"data", "ontology", "keys"},
    "state": {"adapters", "checkpoint", "config", "data", "training"},
    "adapting": {"adapters", "checkpoint", "config", "data", "files", "nn", "state", "training"},
    "integrating": {"adapting", "checkpoint", "data", "exchange", "keys", "tasks"},
    "model": {
        "adapting",
        "base",
        "batch",
        "checkpoint",
        "config",
        "data",
        "exchange",
        "labelling",
        "integrating",
        "keys",
        "metrics",
        "nn",
        "ontology",
        "state",
        "steering",
        "tasks",
        "training",
    },
    "demo": {"model", "datasets", "metrics", "config", "keys", "pl"},
    "cli": {"demo", "model", "datasets", "metrics", "config", "__version__"},
    "__init__": {"config", "datasets", "errors", "genome", "metrics", "model", "ontology", "pl", "steering", "tasks"},
}
"""Unit (file or folder of the package) -> units it may import besides its own modules."""

FORBIDDEN_IN = {
    "anndata": {"nn", "steering", "metrics", "ontology", "batch", "config"},
    "mudata": {"nn", "steering", "metrics", "ontology", "batch", "config"},
    "torch": {"genome", "pl", "metrics", "ontology", "keys", "config", "errors", "__init__"},
}
"""Library -> units that may not import it, not even inside a function."""
ONLY_IN = {
    "matplotlib": {"pl"},
    "seaborn": set(),
    "lightning": {"training", "data/loaders.py"},
    "pytorch_lightning": set(),
    "scvi": set(),
    "peft": {"training/adapters.py"},
    "pyfaidx": {"genome/kmers.py"},
}
"""Library -> the only units, or files, that may import it."""
NEVER_AT_MODULE_LEVEL = {
    "scanpy",
    "squidpy",
    "spatialdata",
    "scvi",
    "arviz",
    "sklearn",
    "transformers",
    "peft",
    "cellxgene_ontology_guide",
    "pyfaidx",
    "IPython",
}
NEVER = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}

FORBIDDEN_CALLS = {
    "torch.load": "weights are safetensors",
    "torch.save": "weights are safetensors",
    "warnings.simplefilter": "the filters are the user's",
    "warnings.filterwarnings": "the filters are the user's",
    "logging.basicConfig": "the root logger is the user's",
    "logging.captureWarnings": "the root logger is the user's",
    "np.random.seed": "pass a numpy Generator",
    "numpy.random.seed": "pass a numpy Generator",
    "random.seed": "pass a numpy Generator",
    "torch.set_num_threads": "the threads are the user's",
    "torch.set_float32_matmul_precision": "global state",
    "torch.set_default_dtype": "global state",
    "torch.set_default_device": "global state",
    "plt.show": "plots return Axes",
    "os.chdir": "global state",
    "eval": "never",
    "exec": "never",
    "breakpoint": "left over",
}
# overrides whose positional parameters Lightning decides
FRAMEWORK_SIGNATURES = {"training/callbacks.py:AveragedWeights.on_train_batch_end"}
TAKES_ANY_KEYWORD = {"config.py:ModelConfig.replace"}
"""Public functions with ``**names`` that check every name themselves and pass none on."""
NO_TEST_FILE: set[str] = set()
"""Modules with code that are tested elsewhere: add the reason."""
TEST_ONLY = {"test_architecture.py", "test_api.py", "conftest.py"}
"""Test files that mirror no module."""


@dataclass(frozen=True)
class Source:
    """One source file and its syntax tree."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(SRC).as_posix()

    @property
    def unit(self) -> str:
        return self.name.split("/")[0].removesuffix(".py")

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def definitions(self) -> list[ast.stmt]:
        return [n for n in self.tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]


SOURCES = [Source(path) for path in sorted(SRC.rglob("*.py"))]
each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.name)


def imports(tree: ast.AST) -> list[tuple[str, int]]:
    """Dotted names imported anywhere below a node; ``from a import b`` gives ``a.b``."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [("." * node.level + f"{node.module or ''}.{alias.name}", node.lineno) for alias in node.names]
    return found


def import_time(tree: ast.Module) -> list[tuple[str, int]]:
    """Like :func:`imports`, of what runs when the module is imported (``if TYPE_CHECKING`` does not)."""
    found, todo = [], list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and dotted(node.test).endswith("TYPE_CHECKING"):
            todo += node.orelse
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            found += imports(node)
        todo += list(ast.iter_child_nodes(node))
    return found


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of a name or attribute, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def functions(body: list[ast.stmt], prefix: str = "") -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Module-level functions and methods, with their qualified names."""
    found = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append((prefix + node.name, node))
        elif isinstance(node, ast.ClassDef):
            found += functions(node.body, f"{prefix}{node.name}.")
    return found


def is_public(qualified: str) -> bool:
    return not any(part.startswith("_") and part != "__init__" for part in qualified.split("."))


def docstring_lines(node: ast.AST) -> int:
    docstring = ast.get_docstring(node, clean=False)
    return 0 if docstring is None else len(docstring.splitlines())


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    return node.end_lineno - node.lineno + 1 - docstring_lines(node)


def test_the_package_was_found():
    assert {"config", "errors", "keys", "batch"} <= {s.unit for s in SOURCES}


@each_source
def test_units_import_only_what_they_may(source):
    assert source.unit in MAY_IMPORT, f"{source.name}: say in MAY_IMPORT, and docs/architecture.md, what it may import"
    allowed = MAY_IMPORT[source.unit] | ANYWHERE | {source.unit}
    for name, line in imports(source.tree):
        assert not name.startswith("."), f"{source.name}:{line}: absolute imports only"
        if name.split(".")[0] == "cellxpert":
            unit = name.split(".")[1]
            assert unit in allowed, f"{source.name}:{line}: {source.unit} may not import {unit}"


@each_source
def test_libraries_stay_where_they_belong(source):
    for name, line in imports(source.tree):
        library = name.split(".")[0]
        where = f"{source.name}:{line}: {library}"
        assert library not in NEVER, f"{where} is never needed"
        assert source.unit not in FORBIDDEN_IN.get(library, ()), f"{where} is forbidden in {source.unit}"
        if library in ONLY_IN:
            assert {source.unit, source.name} & ONLY_IN[library], f"{where} belongs to {ONLY_IN[library] or 'nobody'}"
    for name, line in import_time(source.tree):
        library = name.split(".")[0]
        assert library not in NEVER_AT_MODULE_LEVEL, f"{source.name}:{line}: import {library} inside the function"


@each_source
def test_forbidden_calls(source):
    for node in ast.walk(source.tree):
        where = f"{source.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call):
            called = dotted(node.func)
            assert called not in FORBIDDEN_CALLS, f"{where}: {called}: {FORBIDDEN_CALLS.get(called)}"
            assert called != "print" or source.unit in {"cli", "demo"}, f"{where}: only commands print"
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                assert (keyword.arg, value) not in {("weights_only", False), ("allow_pickle", True)}, where
        if isinstance(node, ast.ExceptHandler):
            silent = all(isinstance(n, ast.Pass) for n in node.body)
            broad = node.type is None or dotted(node.type) in {"Exception", "BaseException"}
            assert not (silent and broad), f"{where}: an error vanishes here"
            assert node.type is not None, f"{where}: say which error"
        if isinstance(node, ast.Attribute) and dotted(node).startswith(("np.random.", "numpy.random.")):
            allowed = {"Generator", "default_rng", "SeedSequence", "BitGenerator", "PCG64", "Philox"}
            assert dotted(node).split(".")[2] in allowed, f"{where}: pass a numpy Generator"


@each_source
def test_files_and_functions_are_short(source):
    """Docstrings do not count: nobody should write less of them to keep a limit."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = sum(docstring_lines(n) for n in ast.walk(source.tree) if isinstance(n, documented))
    lines = len(source.text.splitlines()) - docstrings
    assert lines <= MAX_FILE_LINES, f"{source.name} has {lines} lines: split it by the reader's question"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert code_lines(node) <= MAX_FUNCTION_LINES, f"{source.name}:{node.lineno} {node.name}: split it"


@each_source
def test_signatures_of_public_functions(source):
    for name, node in functions(source.tree.body):
        if not is_public(name):
            continue
        where = f"{source.name}:{node.lineno} {name}"
        positional = [a.arg for a in node.args.posonlyargs + node.args.args if a.arg not in {"self", "cls"}]
        framework = f"{source.name}:{name}" in FRAMEWORK_SIGNATURES
        assert len(positional) <= MAX_POSITIONAL or framework, f"{where}: {positional}: make the rest keyword-only"
        free = node.args.kwarg is not None and f"{source.name}:{name}" not in TAKES_ANY_KEYWORD
        assert not free, f"{where}: name the arguments, no **{node.args.kwarg and node.args.kwarg.arg}"


@each_source
def test_nothing_runs_at_import(source):
    """A module body holds definitions, imports, constants and what builds them; no calls for their effect."""
    allowed = (
        ast.Import,
        ast.ImportFrom,
        ast.Assign,
        ast.AnnAssign,
        ast.FunctionDef,
        ast.AsyncFunctionDef,
        ast.ClassDef,
    )
    for node in source.tree.body:
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        typing = isinstance(node, ast.If) and dotted(node.test).endswith("TYPE_CHECKING")
        main = source.name in {"__main__.py", "cli.py"} and isinstance(node, ast.If)
        assert isinstance(node, allowed) or text or typing or main, f"{source.name}:{node.lineno}: work at import"


@each_source
def test_no_mutable_module_state(source):
    """Containers at module level are constants: upper case, and changed by no function."""
    displays = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    makers = {"list", "dict", "set", "defaultdict", "deque", "OrderedDict", "Counter", "collections.defaultdict"}
    containers = set()
    for node in source.tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            mutable = isinstance(node.value, displays) or (
                isinstance(node.value, ast.Call) and dotted(node.value.func) in makers
            )
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if mutable:
                containers |= {dotted(t) for t in targets}
    for name in containers - {"__all__"}:
        assert name.lstrip("_").isupper(), f"{source.name}: {name} is a mutable module variable"
    changers = {
        "append",
        "extend",
        "insert",
        "add",
        "update",
        "setdefault",
        "pop",
        "popitem",
        "remove",
        "clear",
        "discard",
    }
    for _, function in functions(source.tree.body):
        for node in ast.walk(function):
            where = f"{source.name}:{getattr(node, 'lineno', 0)}"
            assert not isinstance(node, ast.Global), f"{where}: global"
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
                assert dotted(node.value) not in containers, f"{where}: changes a module variable"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in changers:
                assert dotted(node.func.value) not in containers, f"{where}: changes a module variable"


@each_source
def test_shape_suffixes_have_a_legend(source):
    """A tensor module that names shapes (``tokens_BLD``) explains the letters in its docstring."""
    if source.unit not in {"nn", "training", "steering", "batch"}:
        return
    names = {n.id for n in ast.walk(source.tree) if isinstance(n, ast.Name)} | {
        n.arg for n in ast.walk(source.tree) if isinstance(n, ast.arg)
    }
    suffixed = sorted(n for n in names if re.fullmatch(r"[a-z0-9_]+_[A-Z]{1,5}", n))
    docstring = ast.get_docstring(source.tree) or ""
    assert not suffixed or "suffix" in docstring.lower(), f"{source.name}: no legend for {suffixed[:5]}"


@each_source
def test_annotations_are_not_evaluated_and_public_names_are_listed(source):
    if not source.definitions:
        return
    assert ("__future__.annotations") in [name for name, _ in imports(source.tree)], source.name
    listed = [
        ast.literal_eval(n.value)
        for n in source.tree.body
        if isinstance(n, ast.Assign) and any(dotted(t) == "__all__" for t in n.targets)
    ]
    public = {n.name for n in source.definitions if not n.name.startswith("_")}
    if public:
        assert listed, f"{source.name} has no __all__"
        assert public <= set(listed[0]), f"{source.name}: not in __all__: {sorted(public - set(listed[0]))}"


def test_tests_mirror_the_sources():
    tested = {p.relative_to(TESTS).as_posix() for p in TESTS.rglob("test_*.py")}
    expected = {}
    for source in SOURCES:
        if source.definitions and source.path.name != "__init__.py":
            folder, _, file = source.name.rpartition("/")
            expected[source.name] = f"{folder}/test_{file}".lstrip("/")
    missing = {name: test for name, test in expected.items() if test not in tested and name not in NO_TEST_FILE}
    assert not missing, f"modules without tests: {missing}"
    strays = {
        test
        for test in tested - set(expected.values()) - TEST_ONLY
        # a module's tests may be several files: test_tokens_equality.py beside test_tokens.py
        if not test.startswith("benchmarks/")
        and not any(test.startswith(known.removesuffix(".py") + "_") for known in expected.values())
    }
    assert not strays, f"tests of no module: {sorted(strays)}"


def test_tests_have_no_packages():
    """Import mode importlib: two test files may have the same name, and none can be imported by accident."""
    assert not list(TESTS.rglob("__init__.py"))


def test_notebooks_are_committed_clean():
    """Executed without errors or warnings on the screen, in order, and without the paths of anyone's machine."""
    for path in sorted((ROOT / "tutorials").glob("*.ipynb")):
        cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
        counts = [c["execution_count"] for c in cells]
        assert counts == list(range(1, len(cells) + 1)), f"{path.name}: run all cells, in order: {counts}"
        for output in (o for c in cells for o in c["outputs"]):
            assert output["output_type"] != "error", path.name
            assert output.get("name") != "stderr", f"{path.name}: {output.get('text')}"
            shown = "".join(output.get("text", [])) + "".join(output.get("data", {}).get("text/plain", []))
            assert not re.search(r"(?<![\w.])/(home|root|tmp|Users|work|opt)/", shown), f"{path.name}: {shown}"
