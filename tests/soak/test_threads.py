"""Many threads at once call one served model, for long."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize("num_runners", [1, 4])
def test_32_threads_get_right_results_all_the_time(hit_args, acquire_here, hammer, full, count, num_runners):
    model = acquire_here([*hit_args("transformer"), f"runtime.num_runners={num_runners}"]).model
    generator = torch.Generator().manual_seed(0)
    values = [torch.randint(0, 1000, (1 + n % 8, 32), generator=generator) for n in range(32)]
    count("calls from 32 threads", hammer(model, values, seconds=60 if full else 5))
