"""Keyword-only parameters of a function, read from its source, so that checks of a config import no other libraries."""

import ast
import builtins
import importlib.util
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentlab.registry import resolve


def keyword_only(entry: str) -> dict[str, inspect.Parameter]:
    """Return the keyword-only parameters of the function `module:name`, as from `inspect.signature`.

    The module is imported only if a default is not a literal, or an annotation uses a name that the module itself defines.

    Example:
        >>> keyword_only("latentlab.data.load:load_dataset")["missing"]
        <Parameter "missing: float = 0.0">
    """
    try:
        return _declared(entry)
    except (LookupError, NameError, ValueError):
        found = inspect.signature(resolve(entry), eval_str=True).parameters
        return {name: parameter for name, parameter in found.items() if parameter.kind is inspect.Parameter.KEYWORD_ONLY}


def _declared(entry: str) -> dict[str, inspect.Parameter]:
    module, _, name = entry.partition(":")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise LookupError(module)
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    function = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}[name]
    names = _Names(tree)
    return {
        argument.arg: inspect.Parameter(
            argument.arg,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if default is None else ast.literal_eval(default),
            annotation=inspect.Parameter.empty if argument.annotation is None else names.value(argument.annotation),
        )
        for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    }


class _Names(dict[str, Any]):
    """Names that a module imports, each imported at its first use."""

    def __init__(self, tree: ast.Module) -> None:
        super().__init__(vars(builtins))
        self._sources: Mapping[str, tuple[str, str]] = {
            alias.asname or alias.name: (node.module, alias.name)
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        }

    def __missing__(self, name: str) -> Any:
        module, attribute = self._sources[name]
        return getattr(importlib.import_module(module), attribute)

    def value(self, node: ast.expr) -> Any:
        return eval(compile(ast.Expression(node), "annotation", "eval"), {}, self)
