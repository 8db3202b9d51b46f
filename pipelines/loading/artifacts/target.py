"""The hardware that graphs are compiled for: the GPUs, and the instructions of the CPU beside them."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from pathlib import Path

from max.driver import (
    Device,
    set_virtual_device_api,
    set_virtual_device_count,
    set_virtual_device_target_arch,
)

from pipelines.errors import InputError

CPU_TARGET = "cpu"
ARCHITECTURES = {"cuda": re.compile(r"sm_\d{2,3}[af]?", re.ASCII), "hip": re.compile(r"gfx[0-9a-f]{3,4}", re.ASCII)}
"""Names of GPUs, by the API that programs them."""
CPUINFO = Path("/proc/cpuinfo")
INSTRUCTION_SETS = re.compile(
    r"v?aes|amx_\w+|asimd\w*|atomics|avx\w*|abm|bf16|bmi[12]|cx16|f16c|fma4?|fp|gfni|i8mm|lzcnt|movbe|v?pclmulqdq|popcnt"
    r"|sha\w*|sm[34]|ss*se\w*|sve\w*"
)
"""Flags that compilers choose instructions by. The others describe the kernel, or what a hypervisor shows."""


def cpu_features(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Instruction sets of the CPU at hand, by the names of /proc/cpuinfo, and its architecture."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    flags = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset({platform.machine(), *filter(INSTRUCTION_SETS.fullmatch, flags.split())})


def target_of(devices: Sequence[Device]) -> str:
    """Target of graphs that are compiled for these devices, such as "cpu" or "cuda:sm_90".

    The letter of sm_90a, a choice of the compiler's instructions, is left out: the GPU is the same.
    """
    device = devices[0]
    if device.is_host:
        return CPU_TARGET
    name = str(device.architecture_name)
    return f"{device.api}:{name.rstrip('af') if name.startswith('sm_') else name}"


def set_target(target: str, num_devices: int) -> None:
    """Makes this process compile for GPUs that it does not have. No device may have been opened before.

    Args:
        target: API and architecture, "cuda:sm_90a".
        num_devices: The GPUs that seem to be there.

    Raises:
        InputError: It is not a target.
    """
    api, _, architecture = target.partition(":")
    if api not in ARCHITECTURES or not ARCHITECTURES[api].fullmatch(architecture):
        raise InputError(f"target (--target) is '{target}': write for example cuda:sm_90a or hip:gfx942")
    set_virtual_device_api(api)
    set_virtual_device_target_arch(architecture)
    set_virtual_device_count(num_devices)
