"""The public surface: names, signatures, documentation, and what importing the package costs."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import cellxpert as cx

ROOT = Path(__file__).parents[1]
SUBPACKAGES = ["config", "datasets", "errors", "metrics", "ontology", "pl", "steering"]

REQUIRED = inspect.Parameter.empty
SIGNATURES: dict[str, tuple[list[str], dict[str, object]]] = {
    "setup_mudata": (
        ["mdata"],
        {
            "rna": None,
            "atac": None,
            "protein": None,
            "layers": None,
            "batch_key": None,
            "labels_key": None,
            "unlabeled_category": "Unknown",
            "label_terms": None,
            "counts": "auto",
        },
    ),
    "setup_anndata": (
        ["adata"],
        {
            "modality": "rna",
            "layer": None,
            "batch_key": None,
            "labels_key": None,
            "unlabeled_category": "Unknown",
            "label_terms": None,
            "counts": "auto",
        },
    ),
    "__init__": (["mdata"], {"preset": "mini", "config": None, "seed": None}),
    "train": (
        ["max_epochs"],
        {
            "accelerator": "auto",
            "devices": "auto",
            "precision": None,
            "batch_size": None,
            "train_size": 0.9,
            "split_key": None,
            "early_stopping": False,
            "seed": None,
            "resume": None,
            "progress_bar": True,
        },
    ),
    "get_latent": (["mdata"], {"key_added": "X_cellxpert", "inplace": True, "batch_size": None}),
    "annotate": (
        ["mdata"],
        {
            "key_added": "cellxpert_label",
            "inplace": True,
            "unknown": True,
            "coverage": 0.9,
            "back_off": None,
            "set_coverage": None,
            "clusters_key": None,
            "return_proba": False,
            "batch_size": None,
        },
    ),
    "perturb": (
        ["genes", "n_steps"],
        {
            "mdata": None,
            "groupby": None,
            "target": "auto",
            "n_chains": None,
            "seed": None,
            "key_added": "cellxpert_perturbed",
            "inplace": True,
            "steering": None,
            "regulators": None,
            "target_embedding": None,
            "resume": None,
            "progress_bar": True,
        },
    ),
    "save": (["dir_path"], {"overwrite": False}),
    "load": (["dir_path", "mdata"], {}),
}
"""Method -> its positional parameters, and the keyword-only ones with their defaults. Others may follow, keyword-only."""


def in_fresh_process(code: str) -> dict:
    """Run code in a new interpreter; it prints one JSON object."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stderr, done.stderr
    return json.loads(done.stdout)


def public_objects() -> list[tuple[str, object]]:
    """Every public name of the package and of its public subpackages."""
    found = []
    for module in (cx, *(getattr(cx, name) for name in SUBPACKAGES), cx.metrics.baselines):
        for name in module.__all__:
            obj = getattr(module, name)
            if not isinstance(obj, ModuleType) and name != "__version__":
                found.append((f"{module.__name__}.{name}", obj))
    return found


def methods(cls: type) -> dict[str, object]:
    """Public methods and properties that a class defines itself."""
    own = {n: m for c in cls.__mro__ if c.__module__.startswith("cellxpert") for n, m in vars(c).items()}
    return {n: m for n, m in own.items() if not n.startswith("_") and (callable(m) or hasattr(m, "__get__"))}


def test_all_names_of_the_package_can_be_imported():
    assert sorted(cx.__all__) == dir(cx)
    for name in cx.__all__:
        assert getattr(cx, name) is not None
    for name in SUBPACKAGES:
        module = importlib.import_module(f"cellxpert.{name}")
        assert getattr(cx, name) is module
        assert len(set(module.__all__)) == len(module.__all__)
        assert all(hasattr(module, public) for public in module.__all__)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cx.nothing


def test_version_is_the_distributions():
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", cx.__version__)
    assert f'\nversion = "{cx.__version__}"\n' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f"\nversion: {cx.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.parametrize("method", SIGNATURES)
def test_signatures_are_the_fixed_ones(method):
    positional, keyword_only = SIGNATURES[method]
    parameters = inspect.signature(getattr(cx.CellxPert, method)).parameters.values()
    by_place = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]
    by_name = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert by_place == positional
    assert {name: by_name.get(name, REQUIRED) for name in keyword_only} == keyword_only


def test_latent_has_the_name_that_scvi_users_expect():
    """Code written for scvi-tools or scib calls it with an object or nothing, and takes an array."""
    known = inspect.signature(cx.CellxPert.get_latent).parameters
    parameters = inspect.signature(cx.CellxPert.get_latent_representation).parameters
    assert set(parameters) <= set(known)
    assert all(p.default == known[name].default for name, p in parameters.items())


def test_class_methods_are_class_methods():
    for name in ("setup_mudata", "setup_anndata", "load"):
        assert isinstance(inspect.getattr_static(cx.CellxPert, name), classmethod | staticmethod)


@pytest.mark.parametrize(("name", "obj"), public_objects(), ids=lambda x: x if isinstance(x, str) else "")
def test_public_names_are_documented(name, obj):
    """A summary for everything; for functions and methods, a section entry for every parameter."""
    if not (inspect.isclass(obj) or inspect.isfunction(obj)):
        return
    assert inspect.getdoc(obj), f"{name} has no docstring"
    documented = [(name, obj)]
    if inspect.isclass(obj):
        documented = [(f"{name}.{n}", getattr(m, "__func__", m)) for n, m in methods(obj).items()]
    for label, function in documented:
        doc = inspect.getdoc(function.fget if isinstance(function, property) else function)
        assert doc, f"{label} has no docstring"
        if not inspect.isfunction(function) or issubclass_of_exception(obj):
            continue
        parameters = [p for p in inspect.signature(function).parameters if p not in {"self", "cls"}]
        if inspect.isfunction(obj) or name == "cellxpert.CellxPert":
            section = doc.partition("Parameters\n----------")[2]
            # several parameters may share an entry: "n_genes, n_peaks, n_proteins"
            entries = {
                e.strip() for line in re.findall(r"^[\w*, ]+(?= :|$)", section, re.MULTILINE) for e in line.split(",")
            }
            missing = [p for p in parameters if p not in entries]
            assert not missing, f"{label}: parameters not documented: {missing}"


def test_every_public_name_has_a_place_in_the_api_page():
    listed: set[str] = set()
    module = ""
    for line in (ROOT / "docs" / "api.md").read_text(encoding="utf-8").splitlines():
        module = line.split("::")[1].strip() if "currentmodule::" in line else module
        listed |= {f"{module}.{name}" for name in re.findall(r"^   (\w+)$", line)}
    expected = {
        name
        for name, obj in public_objects()
        # the page shows all errors at once
        if not name.startswith("cellxpert.errors.") and (inspect.isclass(obj) or inspect.isfunction(obj))
    }
    assert listed == expected


def issubclass_of_exception(obj: object) -> bool:
    return inspect.isclass(obj) and issubclass(obj, Exception)


def test_all_kinds_of_errors_are_public():
    kinds = {e for e in vars(cx.errors).values() if inspect.isclass(e) and issubclass(e, cx.errors.CellxPertError)}
    assert {kind.__name__ for kind in kinds} <= set(cx.errors.__all__)
    assert all(kind.why for kind in kinds - {cx.errors.CellxPertError})


def test_import_is_fast_and_loads_no_heavy_library():
    code = """
import json, sys, time
start = time.perf_counter()
import cellxpert
seconds = time.perf_counter() - start
heavy = {"torch", "lightning", "pytorch_lightning", "matplotlib", "scanpy", "sklearn", "numba", "transformers", "peft"}
print(json.dumps({"seconds": seconds, "heavy": sorted(heavy & set(sys.modules))}))
"""
    runs = [in_fresh_process(code) for _ in range(3)]
    assert runs[0]["heavy"] == []
    assert min(run["seconds"] for run in runs) < 1.2


@pytest.mark.parametrize("name", ["keys", "errors", "config", "pl", "metrics", "ontology", "datasets"])
def test_parts_that_need_no_torch_load_none(name):
    """``pl`` and ``metrics`` also serve people who never train a model in this process."""
    code = f"""
import json, sys
import cellxpert.{name}
print(json.dumps({{"heavy": sorted({{"torch", "lightning"}} & set(sys.modules))}}))
"""
    assert in_fresh_process(code)["heavy"] == []


def test_import_changes_no_global_state():
    code = """
import json, logging, os, random, warnings
import numpy as np
import torch

def state():
    return [
        random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), torch.get_num_threads(),
        torch.get_default_dtype(), torch.get_float32_matmul_precision(), list(map(str, warnings.filters)),
        list(map(str, logging.root.handlers)), logging.root.level, logging.raiseExceptions, dict(os.environ),
    ]

# what the libraries do when they are imported is theirs
import anndata, lightning.pytorch, matplotlib, mudata, numba, safetensors.torch, scipy.sparse
before = state()
import cellxpert
for name in cellxpert.__all__:
    getattr(cellxpert, name)
after = state()
changed = [i for i, (a, b) in enumerate(zip(before, after)) if a != b]
print(json.dumps({"changed": changed}))
"""
    assert in_fresh_process(code)["changed"] == []


def test_readme_example_uses_what_exists():
    """Every ``cx...`` name of README's Python blocks exists, and every keyword is one of the function's."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for node in ast.walk(ast.parse("\n".join(blocks))):
        if not isinstance(node, ast.Call):
            continue
        dotted = ast.unparse(node.func)
        if dotted.startswith("cx."):
            target = cx
            for part in dotted.split(".")[1:]:
                target = getattr(target, part)
        elif dotted.startswith("model."):
            target = getattr(cx.CellxPert, dotted.removeprefix("model."))
        else:
            continue
        known = inspect.signature(target).parameters
        assert {k.arg for k in node.keywords} <= set(known), dotted
