"""Precisions of this host's processor."""

from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

from marcod.domain import Precision

_BFLOAT16: Final = frozenset({"avx512_bf16", "amx_bf16"})
"""Flags of processors that multiply in bfloat16; others imitate it, many times slower than float32."""


def lacks(precision: Precision) -> str | None:
    """Return what the processor lacks to calculate in float32, bfloat16 or float16; None if nothing."""
    if precision is Precision.FLOAT32:
        return None
    if precision is Precision.FLOAT16:
        return "it has no GPU, and processors calculate in bfloat16"
    return None if _BFLOAT16 & _flags() else "its processor has neither avx512_bf16 nor amx_bf16"


@cache
def _flags() -> frozenset[str]:
    with suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
        return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))
    return frozenset()
