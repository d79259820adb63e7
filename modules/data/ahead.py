"""Work in threads, in order, and never far before its reader."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class CachingStopped(Exception):  # noqa: N818 - not an error
    """`should_stop` said so; what was encoded until then is kept."""


def ahead(
    work: Callable[[_In], _Out],
    inputs: Iterable[_In],
    threads: int,
    most: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[_Out]:
    """`map` in threads that is never more than `most` results before its reader.

    What was begun when it is told to stop still comes.

    Raises:
        CachingStopped: if told to stop.
    """
    waiting: deque[Future[_Out]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for value in inputs:
                if should_stop():
                    raise CachingStopped
                waiting.append(pool.submit(work, value))
                if len(waiting) > most:
                    yield waiting.popleft().result()
            while waiting:
                if should_stop():
                    raise CachingStopped
                yield waiting.popleft().result()
        except CachingStopped:
            yield from [future.result() for future in waiting if not future.cancel()]
            raise
        finally:
            for future in waiting:
                future.cancel()


def together(works: Sequence[Callable[[], None]], halt: Callable[[], None]) -> None:
    """Do all at once, each in a thread of its own, and return when they have ended.

    Args:
        works: what to do.
        halt: called when one fails, to let the others end early.

    Raises:
        Exception: what the first that failed raised.
    """
    with ThreadPoolExecutor(max(1, len(works))) as pool:
        futures = [pool.submit(work) for work in works]
        try:
            ended, _ = wait(futures, return_when=FIRST_EXCEPTION)
        except BaseException:
            halt()
            raise
        failed = next((future for future in ended if future.exception()), None)
        if failed:
            halt()
    if failed:
        failed.result()


def chunks(values: Iterable[_In], size: int) -> Iterator[list[_In]]:
    """Lists of `size` values each; the last may be shorter."""
    chunk: list[_In] = []
    for value in values:
        chunk.append(value)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
