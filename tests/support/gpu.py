"""What the tests of tests/gpu share: they need a GPU, and are skipped by name where torch sees none."""

import pytest
import torch

DEVICE = torch.device("cuda")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
