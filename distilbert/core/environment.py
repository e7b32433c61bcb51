"""What a measurement has to say about where it was made."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

PACKAGES = (
    *("numpy", "torch", "tensorflow", "keras", "jax", "flax", "optax"),
    *("transformers", "onnxruntime", "openvino", "ctranslate2"),
)


def environment(device: str) -> dict[str, str]:
    """What computes on ``device``: date, hardware, versions."""
    from importlib import metadata  # slow to import, which every command would pay for

    found = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()}, Python {platform.python_version()}",
    }
    if device != "cpu" and importlib.util.find_spec("torch") is not None:
        import torch

        found["accelerator"] = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    for name in PACKAGES:
        if importlib.util.find_spec(name) is not None:
            # A package may come under another name, such as tensorflow-cpu.
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[name] = metadata.version(name)
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
