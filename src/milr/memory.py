"""Memory that is kept between convolutions, instead of being given back to the system and asked for again.

glibc gives memory back as soon as a large block at the end of the heap is free, and asks for it anew for the next
layer: each page of it then costs a fault. On a processor the pixels of one `lab` picture take 4,000 faults so, and a
quarter more time (docs/adr/0012). Other C libraries have rules of their own, and stay as they are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

KEPT = 2**28  # bytes at the end of the heap that are not given back
LARGEST = 2**25  # bytes of a block that is part of the heap; glibc allows no more
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
CHOICES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep(environment: Mapping[str, str] | None = None) -> bool:
    """Let glibc keep memory for the rest of the process, unless the user chose how it allocates. Returns whether it
    does; elsewhere this changes nothing."""
    environment = os.environ if environment is None else environment
    if any(environment.get(name, "").strip() for name in CHOICES):
        return False
    try:
        if not os.confstr("CS_GNU_LIBC_VERSION"):  # type: ignore[attr-defined, unused-ignore]
            return False
        import ctypes

        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, ValueError, OSError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, KEPT))
