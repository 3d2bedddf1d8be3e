"""The precisions that bases and adapters come in, as torch names them, and the bytes of a number in each.

Owns that table. Imports no torch.
"""

from collections.abc import Mapping
from typing import Literal

Dtype = Literal["bfloat16", "float16", "float32"]

ITEM_BYTES: Mapping[Dtype, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
