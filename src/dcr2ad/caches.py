"""A least-recently-used cache that is bounded by bytes; knows nothing about what it keeps."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Any


class ByteCache:
    """Keeps values up to a number of bytes; the least recently used ones go. May be used from several threads.

    Args:
        limit: bytes. A single value above it is kept until the next one comes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._size = 0
        self._items: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Any) -> Any | None:
        """The value under a key, or None."""
        with self._lock:
            if key not in self._items:
                return None
            self._items.move_to_end(key)
            return self._items[key][0]

    def put(self, key: Any, value: Any, size: int) -> None:
        """Keep a value of `size` bytes."""
        with self._lock:
            self._size += size - self._items.pop(key, (None, 0))[1]
            self._items[key] = (value, size)
            while self._size > self.limit and len(self._items) > 1:
                self._size -= self._items.popitem(last=False)[1][1]

    def drop(self, key: Any) -> None:
        """Forget the value under a key, where there is one."""
        with self._lock:
            self._size -= self._items.pop(key, (None, 0))[1]

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._items.clear()
            self._size = 0
