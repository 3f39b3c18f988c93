"""Tensors of PyTorch and arrays of NumPy: the equations hold for both, and a codec that only codes needs no PyTorch.

Both have the operators, and functions of the same names; :func:`namespace` tells whose functions to call.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", "Tensor", NDArray[Any])
"""Either of them; what a function takes is what it returns."""
AnyArray = Any
"""Either of them, where a type cannot say that it is the same as elsewhere."""


def namespace(x: AnyArray) -> Any:
    """The package whose functions take ``x``: ``numpy`` or ``torch``.

    >>> namespace(np.zeros(2)).__name__
    'numpy'
    """
    return np if isinstance(x, np.ndarray) else sys.modules["torch"]


def at_least_float32(x: AnyArray) -> Any:
    """The dtype for arithmetic with ``x``: its own, but at least float32."""
    xp = namespace(x)
    return xp.promote_types(x.dtype, xp.float32)


def cast(x: Array, dtype: Any) -> Array:
    """``x`` in another dtype; itself if it has that already."""
    converted: Array = x.astype(dtype, copy=False) if isinstance(x, np.ndarray) else x.to(dtype)
    return converted
