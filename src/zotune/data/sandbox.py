"""The Jinja that a prompt may use: what gives the same text each time, in bounded time and memory.

Jinja's own sandbox keeps a template away from Python's insides. A template may still fill the memory with one product
of a string, loop for years, or draw random words; a run's config may come from somebody else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, final

from jinja2 import Environment, StrictUndefined, Undefined, nodes, pass_environment, pass_eval_context
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from zotune.data.budget import Budget

MAX_SOURCE = 2**16  # characters of a template
MAX_SIZE = 2**20  # characters or items of any value on the way, and of the whole text
MAX_ITEMS = 1024  # items that a loop may have
MAX_LOOPS = 2  # loops inside each other

_FILTERS = frozenset(
    "abs capitalize count d default dictsort e escape first float int items last length list lower map max min reject "
    "rejectattr reverse safe select selectattr sort string sum title trim truncate unique upper wordcount".split()
)
_METHODS = frozenset(
    "capitalize casefold count endswith find get index isalnum isalpha isdigit islower isspace istitle isupper items "
    "keys lower lstrip partition removeprefix removesuffix replace rfind rpartition rsplit rstrip split splitlines "
    "startswith strip swapcase title upper values".split()
)
_REFUSED = (
    nodes.AssignBlock, nodes.Block, nodes.CallBlock, nodes.Extends, nodes.FilterBlock, nodes.FromImport, nodes.Import,
    nodes.Include, nodes.Macro, nodes.Mod, nodes.Mul, nodes.Pow,
)  # fmt: skip


_CONTAINERS, _PLAIN = (list, tuple, dict), (int, float, Undefined)
ITEMS, STORED, READ = "its items", "as stored", "as read"  # filters with names that a template cannot write


@final
class PromptEnvironment(ImmutableSandboxedEnvironment):
    """Columns, conditions, loops over lists, `set`, and the filters and methods of text that only rearrange it.

    Rendering raises SecurityError for a value that grows too large, and when the steps of `budget` are used up.
    """

    intercepted_binops = frozenset("+")

    def __init__(self, finalize: Callable[[Any], Any]) -> None:
        super().__init__(
            undefined=StrictUndefined,
            keep_trailing_newline=True,
            autoescape=False,
            finalize=lambda value: finalize(_written(value)),
        )
        self.budget = Budget()
        tojson = self.filters["tojson"]
        self.globals.clear()  # range, lipsum, cycler, namespace, ...
        filters: dict[str, Callable[..., Any]] = {name: self.filters[name] for name in _FILTERS} | {
            "round": _round,
            "sum": pass_environment(_sum),
            "tojson": pass_eval_context(lambda context, value: tojson(context, value)),  # no indent
            ITEMS: self._items,
        }
        pay(self, self.budget, filters)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  (as Jinja names them)
        """Only methods of text, lists and mappings, and only those that cannot make more of it."""
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if not isinstance(owner, str | dict | list | tuple) or name not in _METHODS:
            raise SecurityError(f"a template cannot call {name or __obj!r}")
        read, given = size_of(owner), size_of([*args, *kwargs.values()])
        # Each letter is looked for among those to strip.
        __self.budget.spend(read * given if "strip" in name else read + given)
        if name == "replace":
            found: Any = replace(owner, *args, **kwargs)
        else:
            found = super().call(__context, __obj, *args, **kwargs)
        __self.budget.spend(size_of(found))
        return found

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """A sum, unless it is too long."""
        size = size_of(left) + size_of(right)
        check_size(size)
        self.budget.spend(size)
        return super().call_binop(context, operator, left, right)

    def tree(self, source: str) -> nodes.Template:
        """The parsed template. Raises TemplateSyntaxError for what a prompt cannot use."""
        if len(source) > MAX_SOURCE:
            raise TemplateSyntaxError(f"it has {len(source)} characters, over {MAX_SOURCE}", 1)
        try:
            tree = self.parse(source)
            for node in tree.find_all(_REFUSED):
                raise TemplateSyntaxError(f"{type(node).__name__} is not for prompts", node.lineno)
            _check_loops(tree, 0)
            Bounding().visit(tree)
        except RecursionError:
            raise TemplateSyntaxError("it nests too deep", 1) from None
        return tree

    def _items(self, value: Any, weight: int) -> list[Any]:
        """What a loop runs over. `weight`: what it costs to run its body once."""
        if isinstance(value, str):
            raise SecurityError("a loop over the letters of a text")
        found = list(islice(value, MAX_ITEMS + 1))
        if len(found) > MAX_ITEMS:
            raise SecurityError(f"a loop over more than {MAX_ITEMS} items")
        self.budget.spend(len(found) * weight)
        return found


@final
class Bounding(NodeTransformer):
    """Puts a check around all that can double: lists, what `~` joins, what `set` stores, what a loop runs over."""

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, STORED)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, STORED) if node.ctx == "load" else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "join")

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:
        self.generic_visit(node)
        node.node = _filter(node.node, STORED)
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        weight = weight_of(node)
        self.generic_visit(node)
        node.iter = _filter(node.iter, ITEMS, nodes.Const(weight, lineno=node.lineno))
        return node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:
        self.generic_visit(node)
        node.filter = _filter(node.filter, STORED)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filter(node.expr, READ)
        for operand in node.ops:
            operand.expr = _filter(operand.expr, READ)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):  # a copy of what it takes
            node.node = _filter(node.node, READ)
        return node


def weight_of(tree: nodes.Node) -> int:
    """What it costs to run a part of a template once, without its loops: its nodes and the text among them."""
    text = sum(len(node.data) for node in tree.find_all(nodes.TemplateData))
    return sum(1 for _ in tree.find_all(nodes.Node)) + text // 8


def _filter(node: Any, name: str, *arguments: nodes.Node) -> nodes.Filter:
    return nodes.Filter(node, name, list(arguments), [], None, None, lineno=1 if node is None else node.lineno)


def _check_loops(node: nodes.Node, depth: int) -> None:
    if isinstance(node, nodes.For):
        depth += 1
        if depth > MAX_LOOPS or node.recursive:
            raise TemplateSyntaxError(f"more than {MAX_LOOPS} loops inside each other", node.lineno)
    for child in node.iter_child_nodes():
        _check_loops(child, depth)


def pay(environment: Environment, budget: Budget, filters: Mapping[str, Callable[..., Any]]) -> None:
    """Give an environment these filters, and those that can grow in our own form; they and its tests cost steps."""

    def trim(value: Any, chars: str | None = None) -> str:
        budget.spend(size_of(value) * size_of(chars or ""))  # each letter is looked for among those to strip
        return str(value).strip(chars)

    own = {"join": pass_environment(join), "replace": replace, "trim": trim, STORED: stored, READ: read}
    known: dict[str, Any] = {**filters, **own}
    tests: dict[str, Any] = dict(environment.tests)
    environment.filters = {name: bounded(budget, function) for name, function in known.items()}
    environment.tests = {name: bounded(budget, test) for name, test in tests.items()}


def bounded(budget: Budget, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that costs what it reads and writes, and whose result may not be too large: `tojson` doubles
    every quote.
    """

    @functools.wraps(function)
    def outer(*args: Any, **kwargs: Any) -> Any:
        budget.spend(1 + sum(map(size_of, (*args, *kwargs.values()))))
        found = stored(function(*args, **kwargs))
        budget.spend(size_of(found))
        return found

    return outer


def read(value: Any) -> Any:
    """What is compared or copied: reading it is paid for where the filter is called."""
    return value


def stored(value: Any) -> Any:
    check_size(size_of(value))
    return value


def _written(value: Any) -> Any:
    """What becomes part of the text."""
    _size([value], {})
    return value


def size_of(value: Any) -> int:
    """Characters and items of a value."""
    return _size(value, {})


def _size(value: Any, known: dict[int, int]) -> int:
    """Characters and items of a value, as its text has them: a list that holds another one twice counts it twice."""
    if isinstance(value, str):
        return len(value)
    if not isinstance(value, _CONTAINERS):
        return 1
    if id(value) not in known:
        size = 1
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            if isinstance(part, _CONTAINERS):
                size += _size(part, known)
            elif isinstance(part, str):
                size += len(part)
            else:
                size += 1
                _refuse_address(part)
        known[id(value)] = size
    return known[id(value)]


def _refuse_address(value: Any) -> None:
    """A function or a generator would read as its address in memory: another text each time."""
    if not isinstance(value, _PLAIN) and (callable(value) or isinstance(value, Iterator)):
        raise SecurityError(f"{type(value).__name__} is no text")


def _round(value: Any, precision: int = 0, method: str = "common") -> Any:
    if abs(precision) > 30 or method != "common":
        raise SecurityError(f"round with precision {precision} and method {method!r}")
    return round(float(value), precision)


def replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = str(text), str(old), str(new)
    found: int = text.count(old)
    times = found if count is None or count < 0 else min(count, found)
    check_size(len(text) + times * len(new))
    return str(text.replace(old, new, times))


def _sum(environment: Any, value: Any, attribute: str | int | None = None, start: Any = 0) -> Any:
    items = [environment.getitem(item, attribute) if attribute is not None else item for item in value]
    if not all(isinstance(item, int | float) for item in (start, *items)):
        raise SecurityError("sum of what is no number")
    return sum(items, start)


def join(environment: Any, value: Any, d: Any = "", attribute: str | int | None = None) -> str:
    items = [environment.getitem(item, attribute) if attribute is not None else item for item in value]
    texts = [str(item) for item in stored(items)]
    check_size(sum(map(len, texts)) + len(str(d)) * len(texts))
    return str(d).join(texts)


def check_size(size: int) -> None:
    if size > MAX_SIZE:
        raise SecurityError(f"a value of {size} characters or items is over {MAX_SIZE}")
