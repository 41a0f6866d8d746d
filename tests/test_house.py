"""The house: which file may import which. Read from the source, annotation-only imports included."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hwnas

ROOT = Path(hwnas.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

FLOORS = {
    "hwnas.arguments": 0,
    "hwnas.lookup": 0,
    "hwnas.errors": 0,
    "hwnas.files": 0,
    "hwnas.processes": 1,
    "hwnas.ops": 1,
    "hwnas.record": 1,
    "hwnas.layers": 1,
    "hwnas.latency": 2,
    "hwnas.core": 3,
    "hwnas.names": 3,
    "hwnas.segmentation": 3,
    "hwnas.deploy": 4,
    "hwnas.zoo": 4,
    "hwnas": 4,  # the face
    "hwnas.recipes": 4,
    "hwnas.search_spaces": 5,
    "hwnas.testing": 6,
    "hwnas.cli": 6,
    "hwnas.__main__": 7,
}
OPTIONAL = {
    "PIL",
    "av",
    "kornia",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pandas",
    "pycuda",
    "pynvml",
    "safetensors",
    "scipy",
    "tensorboard",
    "tensorrt",
    "tensorrt_rtx",
    "torch.utils.tensorboard",
    "torchmetrics",
}


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imported(path, *, annotations=True, inside_functions=True):
    """Every module that a file imports; of ``from a import b`` it is ``a.b`` where that is a module."""
    tree = ast.parse(path.read_text())
    found = set()

    def visit(node):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not inside_functions:
            return
        if is_type_checking(node) and not annotations:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


MODULES = {module_name(path): path for path in FILES}


def floor(module):
    prefixes = [prefix for prefix in FLOORS if module == prefix or module.startswith(prefix + ".")]
    best = max(prefixes, key=len)
    assert best != "hwnas" or module == "hwnas", f"{module} stands on no floor: give it one in this test"
    return FLOORS[best]


def within(module, package):
    return module == package or module.startswith(package + ".")


def ours(path, **options):
    return {module for module in imported(path, **options) if within(module, "hwnas")}


@pytest.mark.parametrize("module", MODULES)
def test_a_file_imports_only_from_its_own_floor_or_lower(module):
    higher = {other for other in ours(MODULES[module]) if floor(other) > floor(module)}
    assert not higher


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("hwnas.latency", ["hwnas.core", "hwnas.segmentation"]),
        ("hwnas.core", ["hwnas.segmentation", "hwnas.search_spaces"]),
        ("hwnas.segmentation", ["hwnas.latency"]),
        # Choices and latency first meet in core/expected.py.
        ("hwnas.core.choice", ["hwnas.latency"]),
        ("hwnas.core.arch", ["hwnas.latency"]),
        ("hwnas.core.relaxation", ["hwnas.latency"]),
        ("hwnas.core.derive", ["hwnas.latency"]),
        ("hwnas.core.genotype", ["hwnas.latency"]),
        ("hwnas.core.space", ["hwnas.latency"]),
    ],
)
def test_rooms_that_do_not_know_each_other(package, forbidden):
    for module, path in MODULES.items():
        if within(module, package):
            known = {other for other in ours(path) if any(within(other, name) for name in forbidden)}
            assert not known, module


def test_nobody_imports_the_command_line():
    for module, path in MODULES.items():
        if not within(module, "hwnas.cli") and module != "hwnas.__main__":
            assert not [other for other in ours(path) if within(other, "hwnas.cli")], module


def test_there_is_no_circle():
    graph = {module: ours(path) - {module} for module, path in MODULES.items()}
    done, path = set(), []

    def visit(module):
        if module in done:
            return
        assert module not in path, " → ".join([*path[path.index(module) :], module])
        path.append(module)
        for other in sorted(graph.get(module, ())):
            visit(other)
        path.pop()
        done.add(module)

    for module in graph:
        visit(module)


def test_search_spaces_use_the_face_alone():
    """So that whoever writes a space outside of this package can do all that ours can."""
    allowed = {*sys.stdlib_module_names, "__future__", "torch", "pydantic"}
    for module, path in MODULES.items():
        if not within(module, "hwnas.search_spaces"):
            continue
        own = ".".join(module.split(".")[:3])
        for other in imported(path):
            assert other == "hwnas" or within(other, own) or other.split(".")[0] in allowed, (module, other)


def test_optional_packages_are_imported_where_they_are_needed():
    for module, path in MODULES.items():
        for other in imported(path, annotations=False, inside_functions=False):
            assert not any(within(other, name) for name in OPTIONAL), (module, other)


def test_packages_that_break_environments_are_not_used():
    for module, path in MODULES.items():
        names = {other.split(".")[0] for other in imported(path)}
        forbidden = {"torchvision", "timm", "segmentation_models_pytorch", "pickle", "dill"}
        # A measuring process is handed its work by its own parent, through a pipe; no file is unpickled.
        allowed = {"pickle"} if module == "hwnas.latency.measuring_process" else set()
        assert not names & forbidden - allowed, module


def test_the_face_is_light():
    heavy = sorted(name for name in OPTIONAL | {"rich", "click"} if not name.startswith("torch."))
    code = f"import sys, hwnas; print([name for name in {heavy} if name in sys.modules])"
    # In a fresh interpreter; torch itself may bring packages of its own, which are not ours to answer for.
    torch_alone = f"import sys, torch; print([name for name in {heavy} if name in sys.modules])"
    ran = [
        subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True, timeout=120)
        for text in (code, torch_alone)
    ]
    assert ran[0].stdout == ran[1].stdout


def test_the_face_imports_no_data_sets_and_no_verbs():
    ran = subprocess.run(
        [sys.executable, "-c", "import sys, hwnas; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    loaded = {module for module in ran.stdout.split() if within(module, "hwnas")}
    # Each of these costs start-up time in every process that imports hwnas, a data loader's workers included.
    for package in ("hwnas.cli", "hwnas.search_spaces", "hwnas.testing"):
        assert not [module for module in loaded if within(module, package)]
    wing = {module for module in loaded if within(module, "hwnas.segmentation")}
    light = ("labels", "losses", "metrics")
    assert wing == {"hwnas.segmentation", *(f"hwnas.segmentation.{name}" for name in light)}


def test_segmentation_finds_each_name_where_it_is_defined():
    import hwnas.segmentation as wing

    named = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse((ROOT / "segmentation/__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom) and within(node.module, "hwnas")
        for alias in node.names
    ]
    assert dir(wing) == sorted(name for _, name in named)
    for module, name in named:
        assert getattr(wing, name) is getattr(sys.modules[module], name)
    with pytest.raises(AttributeError, match=r"'hwnas\.segmentation' has no attribute 'CamVit'"):
        wing.CamVit  # noqa: B018 - the access is what is tested


def face():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    return [
        (node.module, alias) for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]


def test_the_face_names_one_by_one_in_order():
    assert all(alias.asname == alias.name for _, alias in face())
    modules = [module for module, _ in face()]
    assert modules == sorted(modules)
    names = [alias.name for _, alias in face()]
    assert len(names) == len(set(names))


def test_the_face_exposes_what_it_names_and_nothing_else():
    public = {
        name
        for name, value in vars(hwnas).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == {alias.name for _, alias in face()}


@pytest.mark.parametrize("name", [alias.name for _, alias in face()])
def test_every_public_name_has_a_docstring(name):
    thing = getattr(hwnas, name)
    # Its own, not one that it inherits.
    assert thing.__dict__.get("__doc__") if inspect.isclass(thing) else inspect.getdoc(thing)


def test_every_constant_is_defined_once():
    places = {}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in targets:
                for name in getattr(target, "elts", [target]):
                    if isinstance(name, ast.Name) and re.fullmatch(r"[A-Z][A-Z0-9_]+", name.id):
                        places.setdefault(name.id, []).append(str(path))
    # Each kind of file has a schema of its own.
    assert "VOID" in places and len(places.pop("SCHEMA_VERSION")) > 1
    assert not {name: where for name, where in places.items() if len(where) > 1}


def test_exceptions_from_the_linters_name_their_code():
    for path in FILES:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not re.search(r"#\s*noqa(?!: [A-Z]+\d+)", line), f"{path}:{number}"
            assert not re.search(r"#\s*type: ignore(?!\[)", line), f"{path}:{number}"


def test_every_file_says_what_it_is():
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), path


def own_parts(function):
    """The nodes of a function without those of functions inside of it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.FunctionDef):
            yield child
            yield from own_parts(child)


def test_functions_say_which_errors_they_raise():
    """Those of the family that they raise themselves; what they call says it for itself."""
    from hwnas import errors

    family = {name for name, kind in vars(errors).items() if inspect.isclass(kind)}
    silent, checked = [], 0
    for path in FILES:
        # A verb's docstring is its help, and its errors become an exit code.
        if "cli" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            said = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
            if said is None or node.name.startswith("_"):
                continue
            raised = {
                getattr(part.exc.func, "id", "")
                for part in own_parts(node)
                if isinstance(part, ast.Raise) and isinstance(part.exc, ast.Call)
            } & family
            checked += len(raised)
            silent += [f"{path.name}: {node.name} raises {name}" for name in raised if name not in said]
    assert checked > 50 and not silent


def test_every_setting_says_what_it_is():
    """Settings are the command line's options, and the string under a field is all the help there is."""
    from hwnas.cli.data import DataChoice
    from hwnas.core import budget, penalty, prune, relaxation
    from hwnas.deploy import Description, Exported
    from hwnas.recipes import Recipe, Stage
    from hwnas.search_spaces.autortnet import AutoRTNet
    from hwnas.search_spaces.chain import Chain
    from hwnas.zoo import cards

    models = [hwnas.SearchConfig, hwnas.FitConfig, DataChoice, AutoRTNet, Chain, hwnas.Preset, Stage, Recipe]
    # What is written for others to read: a card, an exported file's metadata, what export says.
    models += [cards.Card, cards.Score, cards.Latency, Description, Exported]
    for module in (budget, penalty, prune, relaxation):
        models += [
            kind for kind in vars(module).values() if inspect.isclass(kind) and hasattr(kind, "model_fields")
        ]
    documented = 0
    for model in models:
        if model.__module__.startswith("pydantic"):
            continue
        body = ast.parse(inspect.getsource(model)).body[0].body
        for field, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and field.target.id in model.model_fields:
                assert isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant), (
                    f"{model.__name__}.{field.target.id}"
                )
                documented += 1
    assert documented > 110
