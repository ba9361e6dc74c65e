"""torch's global switches, set from the config in the compile worker and in the run alike."""

from __future__ import annotations

import torch

from .config import Settings


def apply_numerics(settings: Settings) -> None:
    """Set every switch that steers code generation or eager's kernels, whatever they were before."""
    numerics = settings.numerics
    torch.set_float32_matmul_precision(numerics.matmul_precision)
    # torch.use_deterministic_algorithms would import Inductor, which no hit may wait for
    torch.set_deterministic_debug_mode("error" if numerics.deterministic else "default")
    torch.backends.cuda.enable_flash_sdp("flash" in numerics.sdpa)
    torch.backends.cuda.enable_mem_efficient_sdp("mem_efficient" in numerics.sdpa)
    torch.backends.cuda.enable_math_sdp("math" in numerics.sdpa)
    threads = settings.compile.threads or settings.runtime.threads
    if threads is not None:
        torch.set_num_threads(threads)
