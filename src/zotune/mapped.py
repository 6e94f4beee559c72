"""Memory that is no longer needed goes back to the system: pages of mapped files, and what is freed.

Without that a model of which copies are made while it is loaded is held twice, and one that is gathered block by block
is held whole.
"""

from __future__ import annotations

import ctypes
import mmap
import re
from pathlib import Path

from torch import Tensor

_ENTRY = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)")


# Blocks from this size on are mapped one by one: the C library gives them back as soon as they are freed.
_MAPPED_FROM = 1 << 20
_M_MMAP_THRESHOLD = -3


def give_back_freed() -> None:
    """From here on large blocks that are freed go back to the system at once. Only glibc has to be told: it keeps
    blocks of up to 32 MB once such have been freed, for the next that fits.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(ctypes.c_int(_M_MMAP_THRESHOLD), ctypes.c_int(_MAPPED_FROM))


def clean_mappings() -> list[tuple[int, int]]:
    """Address ranges, from and to, of mapped files whose pages are all as in the file; none where that is not told.

    Only Linux tells: /proc/self/smaps counts the pages of a mapping that were written to as anonymous.
    """
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return []
    found, present = [], None
    for line in lines:
        if entry := _ENTRY.match(line):
            present = (int(entry[1], 16), int(entry[2], 16)) if entry[3] != "0" else None
        elif present and line.startswith("Anonymous:") and line.split()[1] == "0":
            found.append(present)
    return found


def release(tensor: Tensor, mappings: list[tuple[int, int]]) -> None:
    """Give back the whole pages of a contiguous CPU tensor in one of the `mappings`; whoever reads them again finds
    the same, from the file. Nothing happens to a tensor that lies elsewhere.
    """
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
    if not any(low <= start and end <= high for low, high in mappings):
        return
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        madvise = ctypes.CDLL(None).madvise
        madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), ctypes.c_int(mmap.MADV_DONTNEED))
