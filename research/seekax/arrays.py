"""Names for types of arrays and trees that JAX has no names for."""

from typing import Any

import jax
import numpy as np

# NumPy's before a compiled function takes it, JAX's inside and after.
Array = jax.Array | np.ndarray

# Nested dicts, lists, tuples and records of arrays, or of one thing for each
# array. No type says which: JAX's functions on trees return Any, and the tree
# of a model's parameters depends on its config.
PyTree = Any
