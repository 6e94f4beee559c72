"""A tokenizer's chat template, rendered as transformers renders it, in bounded time and memory.

It comes with the model, so it may come from anywhere. transformers' own sandbox keeps it away from Python's insides and
from the disk, but lets it loop for years and fill the memory with one product. Here the same language is rendered with
the budget of a prompt's template (`budget.py`): macros, loops that call themselves and numbers that make text longer
count too.

Differs from transformers in: `strftime_now` always tells of the same day, so that a run reads the same text on every
day that it goes on; `random` and `lipsum`, which draw, are no filter and no function.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from zotune.data.budget import Budget
from zotune.data.sandbox import (
    ITEMS,
    MAX_SIZE,
    Bounding,
    check_size,
    join,
    pay,
    replace,
    size_of,
    stored,
    weight_of,
)

MAX_SOURCE = 2**18  # characters; templates of models have some tens of thousands
_MOST_BITS = 4096  # of a whole number
_DAY = time.struct_time((2024, 7, 26, 0, 0, 0, 4, 208, 0))  # the one that Llama's templates name by themselves
# Methods and filters whose numbers say how long their result is.
_WIDENING = frozenset("batch center expandtabs indent ljust rjust slice tojson wordwrap zfill".split())
# Of a format: a width of many digits, or one that is given.
_WIDE = re.compile(r"%[^a-zA-Z%]*([0-9]{5}|\*)|:[^{}]*[0-9]{5}|:[^{}]*\{")


@final
class _Generation(Extension):
    """`{% generation %}`: what the assistant said, which transformers can tell apart. Here it is text like any."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@final
class _Values(Namespace):
    """Jinja's namespace without names that begin with an underscore."""

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"namespace has no attribute {name!r}")
        super().__setitem__(name, value)


@final
class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The Jinja of transformers' chat templates. Rendering raises SecurityError when `budget` is used up."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=self._written
        )
        self.budget, self.weight = Budget(), 1
        for name in ("random", "lipsum"):
            self.filters.pop(name, None)
            self.globals.pop(name, None)
        filters: dict[str, Callable[..., Any]] = {name: self._checked(name, f) for name, f in self.filters.items()} | {
            "tojson": self._checked("tojson", _tojson),
            ITEMS: self._items,
        }
        pay(self, self.budget, filters)
        self.globals |= {"raise_exception": _raise, "strftime_now": _today, "namespace": _Values, "dict": _mapping}

    def compiled(self, source: str) -> Any:
        """The template. Raises TemplateError for what is none, SecurityError for one that is too long or too deep."""
        if len(source) > MAX_SOURCE:
            raise SecurityError(f"it has {len(source)} characters, over {MAX_SOURCE}")
        try:
            tree = self.parse(source)
            self.weight = weight_of(tree)
            Bounding().visit(tree)
            self.budget.allow(0)  # for what is constant
            return self.from_string(tree)
        except RecursionError:
            raise SecurityError("it nests too deep") from None

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  (as Jinja names them)
        """Methods, macros and functions, each at its price."""
        # The sandbox has wrapped `format` of a text.
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        name, given = getattr(__obj, "__name__", ""), [*args, *kwargs.values()]
        read, size = size_of(owner), 1 + sum(map(size_of, given))
        if isinstance(
            __obj, Macro | LoopContext
        ):  # its body is a part of the template, run for each of what it is given
            __self.budget.spend(__self.weight * size)
        elif isinstance(owner, str | bytes | dict | list | tuple):
            __self.budget.spend(read * size if "strip" in name else read + size)
            _check_widths(name, owner, given)
        if name == "replace" and isinstance(owner, str):
            found: Any = replace(owner, *args, **kwargs)
        elif name == "join" and isinstance(owner, str):
            found = join(__self, args[0] if args else (), owner)
        else:
            found = super().call(__context, __obj, *args, **kwargs)
        __self.budget.spend(size_of(found))
        return stored(found)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """A sum, product, power or format, unless it is too long."""
        size = size_of(left) + size_of(right)
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "*":
            _check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * abs(right) > _MOST_BITS:
                raise SecurityError("a power that is too large")
        elif operator == "%" and not numbers:
            _check_format(left)
        elif not numbers:
            check_size(size)
        self.budget.spend(size)
        found = super().call_binop(context, operator, left, right)
        self.budget.spend(size_of(found))
        return stored(found)

    def _checked(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter whose numbers are no larger than what they may make of its value."""
        if name not in _WIDENING and name != "format":
            return function
        passed = getattr(function, "jinja_pass_arg", None) is not None  # the environment or context comes first

        def checked(*args: Any, **kwargs: Any) -> Any:
            value, *given = args[passed:]
            _check_widths(name, value, [*given, *kwargs.values()])
            return function(*args, **kwargs)

        checked.__dict__.update(function.__dict__)
        return checked

    def _items(self, value: Any, weight: int) -> list[Any]:
        """What a loop runs over. `weight`: what it costs to run its body once."""
        found = []
        for item in value:
            self.budget.spend(weight)
            found.append(item)
        return found

    def _written(self, value: Any) -> Any:
        self.budget.spend(size_of(value))
        return value


@final
class ChatTemplate:
    """One template, for as many chats as one likes: `ChatTemplate(source)(messages, True, tokens)`."""

    def __init__(self, source: str) -> None:
        """Raises jinja2's TemplateError for what is no template, or one that cannot be bounded."""
        self._environment = ChatEnvironment()
        self._compiled = self._environment.compiled(source)

    def __call__(self, chat: Sequence[Mapping[str, Any]], ask: bool, tokens: Mapping[str, Any]) -> str:
        """The text of a chat; with `ask` up to where the assistant answers. `tokens`: the tokenizer's, by name.

        Raises TemplateError, and what an expression raises that does not fit the chat.
        """
        messages = [dict(message) for message in chat]
        self._environment.budget.allow(size_of(messages))
        pieces, size = [], 0
        values = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": ask}
        for piece in self._compiled.generate({**tokens, **values}):
            size += len(piece)
            check_size(size)
            pieces.append(piece)
        return "".join(pieces)


def renderer(tokenizer: Any) -> Callable[[Sequence[Mapping[str, Any]], bool], str]:
    """What writes a chat as text for a tokenizer: its template, or a way of its own where it has one.

    Making and calling it raises what FAILURES lists.
    """
    from transformers import PreTrainedTokenizerBase

    if getattr(type(tokenizer), "apply_chat_template", None) is not PreTrainedTokenizerBase.apply_chat_template:
        # Not a template: code of a library, or of the model where the user allowed that.
        return lambda chat, ask: str(
            tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=ask)
        )
    template = _made(str(tokenizer.get_chat_template()))
    tokens = {str(name): value for name, value in tokenizer.special_tokens_map.items()}
    return lambda chat, ask: template(chat, ask, tokens)


@functools.lru_cache(maxsize=8)
def _made(source: str) -> ChatTemplate:
    return ChatTemplate(source)


# What a template that does not fit a chat raises.
FAILURES = (
    TemplateError, TypeError, ValueError, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError,
    SyntaxError,
)  # fmt: skip


def _check_widths(name: str, value: Any, given: Sequence[Any]) -> None:
    if name in _WIDENING:
        for number in given:
            if isinstance(number, int) and size_of(value) * abs(number) > MAX_SIZE:
                raise SecurityError(f"{name} of {number}")
    if name in ("format", "format_map"):
        _check_format(value)


def _check_format(form: Any) -> None:
    """A format may pad to any width."""
    if _WIDE.search(str(form)):
        raise SecurityError("a format with such a width")


def _check_product(left: Any, right: Any) -> None:
    text, number = (right, left) if isinstance(left, int) else (left, right)
    if isinstance(text, str | list | tuple) and isinstance(number, int):
        check_size(size_of(text) * max(number, 0))
    elif isinstance(text, int) and isinstance(number, int) and text.bit_length() + number.bit_length() > _MOST_BITS:
        raise SecurityError("a product that is too large")


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _mapping(*args: Any, **kwargs: Any) -> dict[str, Any]:
    return dict(*args, **kwargs)


def _raise(message: Any) -> None:
    raise TemplateError(str(message))


def _today(form: str) -> str:
    _check_format(form)
    return time.strftime(form, _DAY)
