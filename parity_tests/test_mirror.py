"""The two halves are one text in two languages: files, names in order, arguments, defaults and
docstrings agree; and arrows point down only. What differs stands in the tables below, with its reason."""

import ast
import inspect
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path

import pytest

from jax_flows.registry import registry as jax_registry
from torch_flows.registry import registry as torch_registry

ROOT = Path(__file__).parent.parent
HALVES = ("torch_flows", "jax_flows")
FLOORS = {
    "flow_bridge": set(),
    "torch_flows": {"flow_bridge"},
    "jax_flows": {"flow_bridge"},
    "twinflows": {"flow_bridge", *HALVES},
}
FRAMEWORKS = {"torch", "jax", "flax", "optax", "torchdiffeq", "diffrax"}

Node = ast.ClassDef | ast.FunctionDef

# Each table: a pattern of "file:name", and why. An entry that matches nothing fails.
NAMES_ALONE = {
    "*.init_variables": "JAX: arrays are apart from what uses them",
    "*.variable_shapes": "JAX: their shapes without computing them",
    "*forward_and_update": "JAX: training mode is a method, statistics come back",
    "*.call_and_update": "JAX: training mode is a method, statistics come back",
    "*.bound_and_update": "JAX: training mode is a method, statistics come back",
    "*.log_prob_and_update": "JAX: training mode is a method, statistics come back",
    "*:Chain.split": "JAX: variables of the parts",
    "*:Chain.join": "JAX: variables of the parts",
    "*:Flow.split": "JAX: variables of the parts",
    "*:Flow.join": "JAX: variables of the parts",
    "*:Dequantized.split": "JAX: variables of the parts",
    "*:Dequantized.join": "JAX: variables of the parts",
    "variables.py:*": "PyTorch's arrays are a module's own",
    "*.scan_constants": "JAX: of what a chain scans over; PyTorch's are buffers",
    "bijectors/base.py:Bijector.constants": "JAX: of what a chain scans over; PyTorch's are buffers",
    "*.explicit_inverse": "JAX: the inverse has a gradient of its own",
    "*:implicit_inverse": "JAX: the inverse has a gradient of its own",
    "*.confirm": "PyTorch: modules can be changed after they were built",
    "*:Invert.train": "PyTorch: training mode is state",
    "bijectors/base.py:evaluation": "PyTorch: training mode is state",
    "bijectors/coupling.py:Parts": "JAX: what a scan carries has one form for couplings of either part",
    "bijectors/coupling.py:Partition.apart": "JAX: what a scan carries has one form",
    "bijectors/planar.py:*.map_stack": "PyTorch's chains run equal layers as one, JAX scans over them",
    "interop.py:*": "their hosts are different libraries",
    "devices.py:*": "process groups, or meshes",
    "bijectors/base.py:tracked": "PyTorch: graphs of arrays",
    "bijectors/base.py:vjp": "PyTorch: graphs of arrays",
    "bijectors/base.py:differentiates": "PyTorch: a mode without graphs",
    "training.py:own_part": "process groups",
    "training.py:distributed": "process groups",
    "training.py:Static": "what jit compares by identity",
    "inputs.py:dtype_name": "PyTorch's dtypes have no names",
    "inputs.py:first_weight": "PyTorch's arrays are a module's own",
    "inputs.py:check_output": "JAX sees all dtypes when it traces",
    "inputs.py:is_array": "JAX takes numpy's arrays too",
    "inputs.py:to_jax": "JAX takes numpy's arrays too",
    "checkpoint.py:to_numpy": "numpy takes JAX's arrays as they are",
    "numerics.py:as_int32": "JAX has a mode without 64-bit integers",
    "numerics.py:advance": "JAX's variables are not changed in place",
    "numerics.py:differentiable": "JAX has derivatives wherever they are asked for",
    "numerics.py:in_forward_mode": "JAX has derivatives wherever they are asked for",
    "numerics.py:has_tangent": "JAX has derivatives wherever they are asked for",
    "numerics.py:loops": "JAX always has loops that it need not unroll",
    "numerics.py:takes_kernels": "XLA fuses by itself",
    "numerics.py:recomputed": "XLA fuses by itself",
    "numerics.py:unbound": "of parts and whole PyTorch's compiled backward passes overwrite one too early",
    "numerics.py:with_partials": "XLA on a CPU computes what it fuses anew wherever it is read",
    "numerics.py:full_precision": "products: a mode in PyTorch, an argument in JAX",
    "numerics.py:matmul_precision": "products: a mode in PyTorch, an argument in JAX",
    "numerics.py:conditioner_operands": "products: a mode in PyTorch, an argument in JAX",
    "networks/*": "Flax has modules of its own",
}
OTHER_ARGUMENTS = {
    "*:Bijector.transform": "PyTorch's transforms have a cache",
    "bijectors/base.py:initialize": "variables",
    "distributions.py:Distribution.sample": "PyTorch's dtype is that of the module",
    "checkpoint.py:from_numpy": "an array here, variables there",
    "export.py:export": "jax.export has options of its own",
    "numerics.py:first_step": "what each needs of an array",
    "numerics.py:is_eager": "what each needs of an array",
    "training.py:fit*": "process groups or a mesh",
    "bijectors/coupling.py:*.merge": "how XLA on a CPU puts numbers together",
    "networks/*": "Flax makes layers where they are called",
    "training.py:adam": "an optimiser with or without its parameters",
}
OTHER_DOCSTRINGS = {
    "bijectors/base.py:Bijector*": "in place, or new variables",
    "*.initialize": "in place, or new variables",
    "*.set_statistics": "in place, or new variables",
    "bijectors/base.py:initialize": "in place, or new variables",
    "variables.py:*": "modules, or variables",
    "*:BatchNorm": "in place, or new variables",
    "*:ActNorm": "process groups, or shards",
    "*:Chain": "PyTorch shares modules, JAX stacks variables",
    "*:ContinuousBijector": "solvers of different libraries",
    "*.distribution": "hosts",
    "flows.py:standardized": "in place, or new variables",
    "checkpoint.py:*": "the flow, or the flow and its variables",
    "distributions.py:Distribution.sample": "PyTorch's dtype is that of the module",
    "export.py:export": "formats",
    "images.py:dequantize": "a generator, or a key",
    "importing.py:import_flow": "the flow, or the flow and its variables",
    "inputs.py:check_input": "JAX converts arrays on the way",
    "networks/*": "Flax has modules of its own",
    "numerics.py:*": "what each framework lacks",
    "training.py:*": "in place, or new variables",
}
USED: set[tuple[int, str]] = set()


def allowed(table: dict[str, str], name: str) -> bool:
    found = [pattern for pattern in table if fnmatch(name, pattern)]
    USED.update((id(table), pattern) for pattern in found)
    return bool(found)


def files(half: str) -> set[str]:
    folder = ROOT / half
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}


def tree(package: str, file: str) -> ast.Module:
    return ast.parse((ROOT / package / file).read_text(encoding="utf-8"))


def public(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, Node]]:
    """Classes, functions and methods, in order; JAX's properties are PyTorch's attributes."""
    for child in node.body:
        if isinstance(child, Node) and not child.name.startswith("_"):
            decorators = {ast.unparse(d).split(".")[-1] for d in child.decorator_list}
            if not decorators & {"property", "cached_property", "overload"}:
                yield prefix + child.name, child
                if isinstance(child, ast.ClassDef):
                    yield from public(child, f"{prefix}{child.name}.")


def arguments(node: ast.FunctionDef) -> list[tuple[str, str]]:
    """Names and defaults, but for what carries arrays and randomness."""
    positional = [*node.args.posonlyargs, *node.args.args]
    missing = [None] * (len(positional) - len(node.args.defaults))
    pairs = chain(
        zip(positional, [*missing, *node.args.defaults], strict=True),
        zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
    )
    own = {"self", "variables", "key", "generator"}
    return [(a.arg, ast.unparse(d) if d else "") for a, d in pairs if a.arg not in own]


def docstring(node: Node) -> str:
    """What a docstring says in either half, without its examples."""
    text = (ast.get_docstring(node) or "").split("Examples:")[0]
    text = re.sub(r"\n    (variables|key|generator): .*(\n        .*)*", "", text)
    for own, common in (("jax_flows", "torch_flows"), ("Array", "Tensor")):
        text = text.replace(own, common)
    return " ".join(text.split())


def test_files() -> None:
    lists = [files(half) for half in HALVES]
    assert lists[0] ^ lists[1] == set()


@pytest.mark.parametrize("file", sorted(files("torch_flows") & files("jax_flows")))
def test_mirror(file: str) -> None:
    in_torch, in_jax = (dict(public(tree(half, file), f"{file}:")) for half in HALVES)
    alone = {name for name in in_torch.keys() ^ in_jax.keys() if not allowed(NAMES_ALONE, name)}
    assert alone == set(), "is in one half only"
    assert [n for n in in_torch if n in in_jax] == [n for n in in_jax if n in in_torch], "order"
    for name, node in in_torch.items():
        twin = in_jax.get(name)
        if twin is None:
            continue
        functions = isinstance(node, ast.FunctionDef) and isinstance(twin, ast.FunctionDef)
        if functions and arguments(node) != arguments(twin):
            assert allowed(OTHER_ARGUMENTS, name), (name, arguments(node), arguments(twin))
        if docstring(node) != docstring(twin):
            assert allowed(OTHER_DOCSTRINGS, name), (name, docstring(node), docstring(twin))


@pytest.mark.parametrize("name", sorted(torch_registry.types.keys() | jax_registry.types.keys()))
def test_constructors(name: str) -> None:
    if not torch_registry.types[name].__module__.startswith("torch_flows."):
        pytest.skip("a class of a test")
    signatures = []
    for registry in (torch_registry, jax_registry):
        parameters = inspect.signature(registry.types[name]).parameters.values()
        own = [p for p in parameters if p.name not in ("parent", "name")]  # Flax's
        signatures.append([(p.name, p.kind, p.default, annotation(p)) for p in own])
    assert signatures[0] == signatures[1]


def annotation(parameter: inspect.Parameter) -> str:
    text = str(parameter.annotation)
    return "" if re.search("flow|Any|Module", text) else text


def test_no_entry_is_stale() -> None:
    for file in files("torch_flows") & files("jax_flows"):
        test_mirror(file)
    for table in (NAMES_ALONE, OTHER_ARGUMENTS, OTHER_DOCSTRINGS):
        assert {pattern for pattern in table if (id(table), pattern) not in USED} == set()


@pytest.mark.parametrize("package", FLOORS)
def test_arrows_point_down(package: str) -> None:
    others = FLOORS.keys() - FLOORS[package] - {package}
    if package == "flow_bridge":
        others |= FRAMEWORKS
    for file in files(package):
        for node in ast.walk(tree(package, file)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module] if isinstance(node, ast.ImportFrom) else []
                names = names or [alias.name for alias in node.names]
                assert not {str(name).split(".")[0] for name in names} & others, (file, node.lineno)


def test_no_function_of_the_ground_imports() -> None:
    for file in files("flow_bridge"):
        for node in ast.walk(tree("flow_bridge", file)):
            if isinstance(node, ast.FunctionDef | ast.Lambda):
                inner = [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
                assert not inner, (file, inner[0].lineno)


FOREIGN = (
    "torch._C",
    "torch._foreach",
    "forward_ad._current_level",
    "._modules",
    "._parameters",
    "._validate_args",
)  # hosts' own


@pytest.mark.parametrize("package", FLOORS)
def test_nobody_touches_anothers_underscore(package: str) -> None:
    for file in files(package):
        for node in ast.walk(tree(package, file)):
            if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr):
                text = ast.unparse(node)
                own = ast.unparse(node.value) in ("self", "cls", "super()")
                assert own or any(part in text for part in FOREIGN), (file, node.lineno, text)
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in FLOORS:
                private = [a.name for a in node.names if re.match("_[^_]", a.name)]
                assert not private, (file, node.lineno, private)
