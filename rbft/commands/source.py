"""Parameters of functions and classes, read from their files without importing them.

Importing the command line takes as long as importing torch; its help and a misspelt option can do
without, since annotations, defaults and docstrings stand in the source.
"""

import ast
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

REQUIRED: Final = object()  # the default of a parameter that has none
NULL, SETTINGS, MAPPING = "null", "settings", "{...}"
# What a reader of YAML calls them.
BASIC = {
    "int": "whole number",
    "float": "number",
    "bool": "true|false",
    "str": "text",
    "Path": "path",
    "Any": "any",
    "dict": MAPPING,
    "Mapping": MAPPING,
}
LISTS = ("list", "tuple", "Sequence", "Iterable")
PACKAGES = ("rbft", "lightning")  # whose sources are read; other names are shown as they are
# An entry of a docstring's section Args, and the sections that may follow it.
ENTRY = re.compile(r"\*{0,2}(\w+): ?(.*)")
SECTION = re.compile(r"(Returns|Raises|Yields|Attributes|Example|Note)s?:")


class Parameter(NamedTuple):
    """A parameter as its source describes it.

    Attributes:
        name: Its name.
        kinds: What it may be: values, `null` or types, in the words of `BASIC`.
        default: Its default as YAML would have it, `REQUIRED` where there is none.
        text: What the docstring says of it, on one line.
        nested: The parameters of the settings that it takes; empty for all else.
    """

    name: str
    kinds: tuple[str, ...]
    default: Any
    text: str
    nested: "tuple[Parameter, ...]" = ()


class Source:
    """The definitions of a module.

    Args:
        module: Its dotted name; the module is not imported.
    """

    def __init__(self, module: str) -> None:
        tree = ast.parse(_file(module).read_text(encoding="utf-8"))
        self.names: dict[str, ast.stmt] = {}
        for one in _statements(tree.body):
            for name in _defined(one):
                self.names.setdefault(name, one)

    def find(self, name: str) -> tuple["Source", ast.stmt | None]:
        """Where a name is defined, in this module or in one that it is imported from.

        Returns:
            The module and the statement; None where that is in none of `PACKAGES`.
        """
        found = self.names.get(name)
        if not isinstance(found, ast.ImportFrom):
            return self, found
        module = found.module or ""
        if found.level or module.partition(".")[0] not in PACKAGES:
            return self, None
        (origin,) = (one.name for one in found.names if (one.asname or one.name) == name)
        return source(module).find(origin)

    def function(self, name: str) -> ast.FunctionDef:
        """The function of that name, `Class.method` for a method."""
        owner, _, method = name.rpartition(".")
        if owner:
            body = self._class(owner).body
            (found,) = (n for n in body if isinstance(n, ast.FunctionDef) and n.name == method)
            return found
        _, node = self.find(name)
        assert isinstance(node, ast.FunctionDef)
        return node

    def parameters(self, name: str) -> tuple[Parameter, ...]:
        """The parameters of a function, or those that a class is made with.

        `self`, `**kwargs` and parameters without annotation are left out.

        Args:
            name: Of a function or class of this module.
        """
        _, node = self.find(name)
        if isinstance(node, ast.FunctionDef):
            return self._of_function(node, ast.get_docstring(node))
        made = self._class(name)
        if _is_dataclass(made):
            return self._of_dataclass(made)
        function = self.function(f"{name}.__init__")
        return self._of_function(function, ast.get_docstring(function) or ast.get_docstring(made))

    def expression(self, name: str) -> tuple["Source", ast.expr]:
        """What a name of this module is set to, and where."""
        owner, node = self.find(name)
        assert isinstance(node, ast.Assign | ast.AnnAssign)
        assert node.value is not None
        return owner, node.value

    def kinds(self, node: ast.expr) -> tuple[str, ...]:
        """What an annotation allows, see `Parameter.kinds`."""
        return tuple(dict.fromkeys(self._kinds(node)))

    def nested(self, node: ast.expr) -> tuple[Parameter, ...]:
        """The parameters of the settings class that an annotation names, if it names one."""
        for name in [one.id for one in ast.walk(node) if isinstance(one, ast.Name)]:
            owner, found = self.find(name)
            if isinstance(found, ast.ClassDef) and _is_dataclass(found):
                return owner._of_dataclass(found)
        return ()

    def value(self, node: ast.expr | None) -> Any:
        """A default as YAML would have it.

        Args:
            node: The expression; None is no default.
        """
        if node is None:
            return REQUIRED
        if isinstance(node, ast.Name):
            owner, found = self.find(node.id)
            if isinstance(found, ast.Assign | ast.AnnAssign) and found.value is not None:
                return owner.value(found.value)
        if isinstance(node, ast.List | ast.Tuple):
            return [self.value(one) for one in node.elts]
        if isinstance(node, ast.Call) and _last(node.func) == "Path":
            return str(Path(*(self.value(one) for one in node.args)))
        if isinstance(node, ast.Call) and _last(node.func) == "field":
            (made,) = (one.value for one in node.keywords if one.arg == "default_factory")
            return {"list": [], "dict": {}}.get(_last(made), _last(made))
        try:
            return ast.literal_eval(node)
        except ValueError:
            return ast.unparse(node)

    def _class(self, name: str) -> ast.ClassDef:
        _, node = self.find(name)
        assert isinstance(node, ast.ClassDef)
        return node

    def _of_function(self, node: ast.FunctionDef, doc: str | None) -> tuple[Parameter, ...]:
        texts, given = argument_texts(doc), node.args
        ordered = [*given.posonlyargs, *given.args]
        defaults = [None] * (len(ordered) - len(given.defaults)) + [*given.defaults]
        pairs = [*zip(ordered, defaults, strict=True)]
        pairs += zip(given.kwonlyargs, given.kw_defaults, strict=True)
        return tuple(
            self.parameter(one.arg, one.annotation, default, texts.get(one.arg, ""))
            for one, default in pairs
            if one.annotation is not None
        )

    def _of_dataclass(self, node: ast.ClassDef) -> tuple[Parameter, ...]:
        texts = argument_texts(ast.get_docstring(node))
        return tuple(
            self.parameter(one.target.id, one.annotation, one.value, texts.get(one.target.id, ""))
            for one in node.body
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
        )

    def parameter(
        self, name: str, annotation: ast.expr, default: ast.expr | None, text: str
    ) -> Parameter:
        """A parameter of its parts; see `Parameter`."""
        kinds, nested = self.kinds(annotation), self.nested(annotation)
        return Parameter(name, kinds, self.value(default), text, nested)

    def _kinds(self, node: ast.expr) -> Iterator[str]:
        if isinstance(node, ast.Constant):
            if node.value is None:
                yield NULL
            else:  # an annotation in quotes
                yield from self._kinds(ast.parse(str(node.value), mode="eval").body)
        elif isinstance(node, ast.BinOp):
            yield from self._kinds(node.left)
            yield from self._kinds(node.right)
        elif isinstance(node, ast.Subscript):
            yield from self._subscript(_last(node.value), node.slice)
        elif isinstance(node, ast.Name | ast.Attribute):
            yield from self._named(_last(node))
        else:
            raise TypeError(f"an annotation that is not understood: {ast.unparse(node)}")

    def _subscript(self, base: str, index: ast.expr) -> Iterator[str]:
        within = index.elts if isinstance(index, ast.Tuple) else [index]
        if base == "Literal":
            for one in within:
                yield from self._values(one)
        elif base in LISTS:
            shown = [one for one in within if ast.unparse(one) != "..."]
            kinds = dict.fromkeys(kind for one in shown for kind in self._kinds(one))
            yield f"[{'|'.join(kinds)}, ...]"
        elif base in BASIC:
            yield BASIC[base]
        else:  # Optional and Union; of others, what stands within
            for one in within:
                yield from self._kinds(one)
            if base == "Optional":
                yield NULL

    def _values(self, node: ast.expr) -> Iterator[str]:
        """The values of a Literal."""
        if isinstance(node, ast.Constant):
            yield str(node.value)
            return
        # `tuple(NAME)`: the keys of a table that only its module can make, and that needs no torch.
        assert isinstance(node, ast.Call)
        (name,) = (one.id for one in node.args if isinstance(one, ast.Name))
        origin = self.names[name]
        assert isinstance(origin, ast.ImportFrom)
        yield from map(str, getattr(import_module(str(origin.module)), name))

    def _named(self, name: str) -> Iterator[str]:
        if name in BASIC:
            yield BASIC[name]
            return
        owner, found = self.find(name)
        if isinstance(found, ast.Assign | ast.AnnAssign) and found.value is not None:
            yield from owner._kinds(found.value)
        elif isinstance(found, ast.ClassDef) and _is_dataclass(found):
            yield SETTINGS
        else:
            yield name


@cache
def source(module: str) -> Source:
    """The definitions of a module, read once.

    Args:
        module: Its dotted name.
    """
    return Source(module)


def argument_texts(doc: str | None) -> dict[str, str]:
    """What the section Args of a docstring says, by argument, each on one line.

    Args:
        doc: The docstring; None says nothing.
    """
    lines = inspect.cleandoc(doc or "").splitlines()
    if "Args:" not in lines:
        return {}
    texts: dict[str, str] = {}
    name, indent = "", 0
    for line in lines[lines.index("Args:") + 1 :]:
        if SECTION.fullmatch(line):
            break
        entry, depth = ENTRY.fullmatch(line.strip()), len(line) - len(line.lstrip())
        indent = indent or depth
        if entry and depth == indent:
            name = entry[1]
            texts[name] = entry[2]
        elif name and line.strip():
            texts[name] += f" {line.strip()}"
    return {name: text.strip() for name, text in texts.items()}


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, also those behind `if TYPE_CHECKING`."""
    for one in body:
        if isinstance(one, ast.If):
            yield from _statements(one.body)
            yield from _statements(one.orelse)
        else:
            yield one


def _defined(statement: ast.stmt) -> list[str]:
    """The names that a statement defines."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.ImportFrom):
        return [one.asname or one.name for one in statement.names]
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    return [one.id for one in targets if isinstance(one, ast.Name)]


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(
        _last(one.func if isinstance(one, ast.Call) else one) == "dataclass"
        for one in node.decorator_list
    )


def _last(node: ast.expr) -> str:
    """The last part of a dotted name."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _file(module: str) -> Path:
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded is not None:
        return Path(loaded)
    package, *parts = module.split(".")
    spec = find_spec(package)  # of a whole package: nothing is imported
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0], *parts)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
