"""Loading transformers without what it imports for others: torch's compiler, distributed tensors, scipy's optimizers.

A model class of transformers imports all of that at its top, to train, serve and quantize, and uses none of it to draw:
more than half of what a first picture waits for besides torch. `lightly()` is a context in which import statements of
transformers' modules get a `Later` in the place of a name from one of HEAVY; it becomes the real thing when first used.
No other code sees one, `sys.modules` never holds anything but real modules, and whoever imports such a module, then or
later, gets it whole. A function that transformers marks for torch's compiler gets its mark when the compiler is
loaded, if it ever is.

Where transformers changes its imports, the worst that happens is that a module is loaded at once, as without this file.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.abc
import importlib.util
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

FOR_WHOM = "transformers"
COMPILER = "torch._dynamo"
HEAVY = (
    # Of others
    "scipy.optimize",
    "torch._dynamo",
    "torch.distributed._composable",
    "torch.distributed._functional_collectives",
    "torch.distributed.checkpoint",
    "torch.distributed.device_mesh",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    # Of transformers itself: what asks those for something while it is imported
    "transformers.distributed.expert_parallel",
    "transformers.distributed.sharding_utils",
    "transformers.distributed.tensor_parallel",
    "transformers.generation.continuous_batching.cache",
    "transformers.integrations.eager_paged",
    "transformers.integrations.flash_attention",
    "transformers.integrations.flash_paged",
    "transformers.integrations.flex_attention",
)  # each with all below it


class Later:
    """A name of a module that is not loaded yet. Whatever is done with it is done with the real thing.

    But for one question, which needs no import to be answered: nothing is an instance of a class that is not there yet.
    """

    def __init__(self, module: str, name: str, union: Callable[[Any], Any] | None = None) -> None:
        """`union`: what is made of the real thing where this is its union with something (an annotation)."""
        self.__dict__.update(_module=module, _name=name, _union=union)

    def _real(self) -> Any:
        module = importlib.import_module(self._module)
        settle(self._module)
        found = getattr(module, self._name)
        return found if self._union is None else self._union(found)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._real(), name, value)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._real()(*arguments, **named)

    def __instancecheck__(self, thing: Any) -> bool:
        if self._union is None and self._module not in sys.modules:
            return False
        return isinstance(thing, self._real())

    def __subclasscheck__(self, kind: Any) -> bool:
        if self._union is None and self._module not in sys.modules:
            return False
        return issubclass(kind, self._real())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._real(),)

    def __or__(self, other: Any) -> Any:
        made = self._union or (lambda real: real)
        return Later(self._module, self._name, lambda real: made(real) | other)

    def __ror__(self, other: Any) -> Any:
        made = self._union or (lambda real: real)
        return Later(self._module, self._name, lambda real: other | made(real))

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._real())

    def __getitem__(self, key: Any) -> Any:
        return self._real()[key]

    def __eq__(self, other: Any) -> bool:
        if isinstance(other, Later):
            return (self._module, self._name, self._union) == (other._module, other._name, other._union)
        if self._module not in sys.modules:
            return False
        return bool(self._real() == other)

    def __hash__(self) -> int:
        return hash(self._real())

    def __repr__(self) -> str:
        return f"<{self._module}.{self._name}, not loaded yet>"


class _Module:
    """What `from module import name` of a heavy module is given: every name of it is a `Later`."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Later(self.__name__, name)


def settle(module: str) -> None:
    """Put the real things of a module that is loaded now in the place of every `Later` that transformers holds."""
    real = sys.modules[module]
    for name, holder in list(sys.modules.items()):
        if _is_theirs(name) and isinstance(holder, ModuleType):
            for held, value in list(vars(holder).items()):
                if isinstance(value, Later) and value._module == module:
                    setattr(holder, held, getattr(real, value._name))


@contextmanager
def lightly() -> Iterator[None]:
    """Import and use transformers here without what it imports for others. Nests, and is not for one thread alone: in
    others transformers gets the same, which is as right there."""
    with _lock:
        _open.append(True)
        if len(_open) == 1:
            _begin()
    try:
        with _without_numbers():
            yield
    finally:
        with _lock:
            _open.pop()
            if not _open:
                _end()


_lock = threading.RLock()
_open: list[bool] = []
_undo: list[Callable[[], None]] = []


def _begin() -> None:
    whole = builtins.__import__

    def lighter(
        name: str, globals: Any = None, locals: Any = None, fromlist: Sequence[str] | None = (), level: int = 0
    ) -> Any:
        # `import a.b` binds a, which is loaded: it must be given whole. `from a import b` where b is a module, too.
        if fromlist and globals is not None and _is_theirs(globals.get("__name__") or "") and "*" not in fromlist:
            package = globals.get("__package__") or ""
            module = name if not level else importlib.util.resolve_name("." * level + name, package)
            if _is_heavy(module) and module not in sys.modules:
                return _Module(module)
        return whole(name, globals, locals, fromlist, level)

    builtins.__import__ = lighter

    def undo() -> None:
        if builtins.__import__ is lighter:
            builtins.__import__ = whole

    _undo.append(undo)
    if COMPILER not in sys.modules:
        _undo.append(_postpone_marks())


def _end() -> None:
    while _undo:
        _undo.pop()()


def _is_heavy(name: str) -> bool:
    return any(name == heavy or name.startswith(heavy + ".") for heavy in HEAVY)


def _is_theirs(module: str) -> bool:
    return module == FOR_WHOM or module.startswith(FOR_WHOM + ".")


# --- Tensors without numbers -----------------------------------------------------------------------------------------


def _without_numbers() -> AbstractContextManager[Any]:
    """A model is made on torch's meta device first, where tensors have shapes and no numbers. For two operations that
    models are made with, torch asks its compiler there; neither needs it."""
    import torch
    from torch.overrides import TorchFunctionMode

    class WithoutNumbers(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is torch.arange and str(kwargs.get("device")) == "meta":
                # Positions and frequencies: a few numbers, which every model computes anew when it is loaded.
                kwargs = {**kwargs, "device": "cpu"}
            elif func is torch.nn.init.normal_ and (tensor := args[0] if args else kwargs["tensor"]).is_meta:
                return tensor
            return func(*args, **kwargs)

    return WithoutNumbers()


# --- Marks for the compiler ------------------------------------------------------------------------------------------


class _Compiler:
    """Stands where torch's compiler will be as an attribute of torch. Its two decorators note a function and return it
    as it is, so they may do so later; whatever else is asked of it loads the compiler."""

    def allow_in_graph(self, fn: Any) -> Any:
        return self._mark("allow_in_graph", fn)

    def assume_constant_result(self, fn: Any) -> Any:
        return self._mark("assume_constant_result", fn)

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(COMPILER), name)

    def _mark(self, decorator: str, fn: Any) -> Any:
        def mark() -> Any:
            return getattr(importlib.import_module(COMPILER), decorator)(fn)

        if COMPILER in sys.modules or not _is_theirs(getattr(fn, "__module__", None) or ""):
            return mark()
        _tell_compiler(mark)
        return fn


def _postpone_marks() -> Callable[[], None]:
    """Put the stand-in where transformers finds the decorators. Returns how to end this."""
    import torch
    import torch.compiler

    given, stand_in = torch.compiler.allow_in_graph, _Compiler()
    torch.compiler.allow_in_graph = stand_in.allow_in_graph
    vars(torch)["_dynamo"] = stand_in

    def undo() -> None:
        if getattr(torch.compiler.allow_in_graph, "__self__", None) is stand_in:
            torch.compiler.allow_in_graph = given
        if vars(torch).get("_dynamo") is stand_in:  # else the compiler was loaded meanwhile
            del vars(torch)["_dynamo"]

    return undo


def _tell_compiler(mark: Callable[[], Any]) -> None:
    """Call `mark` as soon as torch's compiler is loaded."""
    watch = next((finder for finder in sys.meta_path if isinstance(finder, _Watch)), None)
    if watch is None:
        watch = _Watch()
        sys.meta_path.insert(0, watch)
    watch.marks.append(mark)


class _Watch(importlib.abc.MetaPathFinder):
    """Hears that torch's compiler is imported, and steps aside."""

    def __init__(self) -> None:
        self.marks: list[Callable[[], Any]] = []

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != COMPILER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_mark(module: ModuleType) -> None:
                load(module)
                for mark in self.marks:
                    mark()

            spec.loader.exec_module = load_and_mark  # type: ignore[method-assign]
        return spec
