"""`pytest --quick`, which `make quick` calls: the tests that start no process and take no seconds.

Left out are the tests marked `slow` or `long`, and those whose own code, fixtures and helpers below tests/ name
`subprocess` or `multiprocessing`. What starts a process in another way, through the code under test, is refused with an
error that asks for the mark.
"""

import _posixsubprocess  # where both subprocess and multiprocessing begin
import dis
import functools
import inspect
import multiprocessing
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from types import CodeType, FunctionType
from typing import Any, NoReturn

import pytest

MARKS = ("slow", "long")
STARTERS = (subprocess, multiprocessing, ProcessPoolExecutor, subprocess.Popen, subprocess.run)
WAYS = (
    (subprocess, "_fork_exec"),
    (_posixsubprocess, "fork_exec"),
    (os, "fork"),
    (os, "forkpty"),
    (os, "posix_spawn"),
    (os, "posix_spawnp"),
    (os, "system"),
)


class ProcessStarted(BaseException):
    """Not an Exception, so that no code under test takes it for a command that failed."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only tests that start no process and take no seconds")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        left_out = [item for item in items if is_slow(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
        forbid_processes()  # here, because a parallel run's own process starts the workers and collects nothing


def is_slow(item: pytest.Item) -> bool:
    """Whether a test is marked, or whether it or one of its fixtures starts processes."""
    if any(item.get_closest_marker(name) for name in MARKS) or not isinstance(item, pytest.Function):
        return True
    fixtures = (fixture.func for many in item._fixtureinfo.name2fixturedefs.values() for fixture in many)
    return any(starts_processes(function) for function in (item.function, *fixtures))


@functools.cache
def starts_processes(function: Callable) -> bool:
    """Whether a function names a way to start processes, itself or in the functions of the tests that it names."""
    return any(value is way for reached in _reached(function) for value in _named(reached) for way in STARTERS)


def _reached(function: Callable) -> set[FunctionType]:
    """The function, and all functions below tests/ that it can come to by name."""
    found: set[FunctionType] = set()
    coming = [inspect.unwrap(function)]
    while coming:
        one = coming.pop()
        if isinstance(one, type):
            coming += (inspect.unwrap(value) for value in vars(one).values() if callable(value))
        elif isinstance(one, FunctionType) and one not in found:
            found.add(one)
            named = (value for value in _named(one) if str(getattr(value, "__module__", "")).startswith("tests."))
            coming += (inspect.unwrap(value) for value in named if callable(value))
    return found


def _named(function: FunctionType) -> Iterator[Any]:
    """The global values whose names a function and the functions inside it use."""
    codes = [function.__code__]
    for code in codes:  # grows while it is read
        codes += (constant for constant in code.co_consts if isinstance(constant, CodeType))
        names = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
        yield from (function.__globals__[name] for name in names if name in function.__globals__)


def forbid_processes() -> None:
    """From now on every way to start a process raises ProcessStarted."""
    os.environ["TACAF_COMMIT"] = "0" * 40  # so that nothing needs git
    for module, name in WAYS:
        setattr(module, name, refuse)


def refuse(*words: Any, **_: Any) -> NoReturn:
    raise ProcessStarted(f"a test without the mark `slow` starts a process: {words[:1]}")
