"""What /proc/cpuinfo says of the processor: its name, its cores, and the features that kernels are chosen by.

Pure: text in, facts out. Sources: the lists of XNNPACK (src/configs/hardware-config.c) and ruy, and the kernel's
Documentation/arch/arm64/elf_hwcaps.rst for the words on ARM.
"""

from __future__ import annotations

import re
from collections import Counter

__all__ = ["cpu_features", "cpu_name", "listed_cores"]

# in the kernel's words
_X86 = """
    ssse3 sse4_1 sse4_2 avx f16c fma avx2 gfni avx_vnni avx_vnni_int8
    avx512f avx512bw avx512dq avx512vl avx512cd avx512vbmi avx512_vnni avx512_bf16 avx512_fp16
    amx_tile amx_int8 amx_bf16 amx_fp16
"""
_ARM = """
    neon vfpv4 asimd asimdhp fphp asimdrdm asimddp asimdfhm i8mm bf16
    sve sve2 svei8mm svebf16 sme sme2 smei8i32
"""
_FEATURES = frozenset((_X86 + _ARM).split())
# of implementer 0x41, Arm (util-linux, sys-utils/lscpu-arm.c)
_ARM_PARTS = {
    "0xc07": "Cortex-A7",
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
    "0xd46": "Cortex-A510",
    "0xd47": "Cortex-A710",
    "0xd49": "Neoverse-N2",
    "0xd4b": "Cortex-A78C",
    "0xd4f": "Neoverse-V2",
    "0xd80": "Cortex-A520",
    "0xd81": "Cortex-A720",
}
_MAX_NAME = 200


def cpu_name(cpuinfo: str) -> str | None:
    """Return the processor's name: of the first core on x86, of each kind of core on ARM ("4x Cortex-A55, …")."""
    if names := _values(cpuinfo, "model name"):
        return names[0][:_MAX_NAME]
    pairs = zip(_values(cpuinfo, "CPU implementer"), _values(cpuinfo, "CPU part"), strict=False)
    kinds = Counter(_arm_name(implementer, part) for implementer, part in pairs)
    if len(kinds) == 1:
        return next(iter(kinds))
    return ", ".join(f"{count}x {kind}" for kind, count in sorted(kinds.items()))[:_MAX_NAME] or None


def cpu_features(cpuinfo: str) -> tuple[str, ...]:
    """Return the features that every core has and kernels are chosen by, sorted."""
    lines = _values(cpuinfo, "flags") or _values(cpuinfo, "Features")
    if not lines:
        return ()
    return tuple(sorted(_FEATURES.intersection(*(line.split() for line in lines))))


def listed_cores(cpuinfo: str) -> int | None:
    """Return how many cores are listed; None when none is."""
    return len(_values(cpuinfo, "processor")) or None


def _arm_name(implementer: str, part: str) -> str:
    name = _ARM_PARTS.get(part) if implementer == "0x41" else None
    return name or f"ARM implementer {implementer[:20]} part {part[:20]}"


def _values(cpuinfo: str, key: str) -> list[str]:
    """Return the values of a key, in the order of the cores."""
    return [match.strip() for match in re.findall(rf"^{key}[ \t]*:[ \t]*(\S.*)$", cpuinfo, re.MULTILINE)]
