"""Traced programs kept on disk, beside what was compiled of them.

JAX's own cache spares the compiler. Tracing a model in Python and lowering it
takes longer than all else at the start of a short command; here its StableHLO
is kept too. It is found again by a hash of everything that it depends on: the
source of seekax, the versions, the shapes of the arguments, and a description.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import functools
import hashlib
import pathlib
from typing import Any, TypeAlias

import jax
import jaxlib

from seekax.files import write_atomically
from seekax.machine import compiling

# The structure of a call's arguments; shape, dtype and weak type of each array.
_Shapes: TypeAlias = tuple[Any, tuple[tuple[Any, ...], ...]]

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]


def kept(
  function: Callable[..., Any],
  description: str,
  records: Sequence[type],
  donate_argnums: tuple[int, ...] = (),
) -> Callable[..., Any]:
  """A pure function, compiled; traced only if no earlier process has done so.

  Without a compilation cache (`compilation_cache.switch_on`), on a mesh, and
  where a program can't be kept (it calls a kernel whose form may change), this
  is `compiling.jit`.

  Args:
    function: takes trees of arrays alone.
    description: all that the program depends on beside the source of seekax and
      the shapes of the arguments.
    records: dataclasses of arrays (flax.struct) among arguments and results.
    donate_argnums: arguments whose memory may be taken.
  """
  plain = compiling.jit(function, donate_argnums=donate_argnums)
  found: dict[_Shapes, Callable[..., Any]] = {}

  def call(*arguments):
    folder = _folder()
    if not folder or not jax.sharding.get_abstract_mesh().empty:
      return plain(*arguments)
    # A decoder calls this for every token: the hash is made once per shape.
    shapes = _shapes(arguments)
    if shapes not in found:
      key = _key(description, shapes)
      path = pathlib.Path(folder) / f'traced-{key}-cache'
      program = _load(path, records) or _export(path, plain, arguments, records)
      found[shapes] = (
        compiling.jit(program.call, donate_argnums=donate_argnums)
        if program
        else plain
      )
    return found[shapes](*arguments)

  return call


def _folder() -> str:
  """Where JAX keeps programs; '' where it keeps none."""
  if not compiling.setting('jax_enable_compilation_cache'):
    return ''
  return compiling.setting('jax_compilation_cache_dir') or ''


def _shapes(arguments: tuple[Any, ...]) -> _Shapes:
  leaves, structure = jax.tree.flatten(arguments)
  return structure, tuple(
    (leaf.shape, leaf.dtype, getattr(leaf, 'weak_type', False))
    for leaf in leaves
  )


def _key(description: str, shapes: _Shapes) -> str:
  """Hash of what a program depends on."""
  structure, leaves = shapes
  parts = (
    _source_hash(),
    jax.__version__,
    jaxlib.__version__,
    jax.default_backend(),
    str(compiling.setting('jax_default_matmul_precision')),
    str(compiling.setting('jax_enable_x64')),
    description,
    str(structure),
    *map(str, leaves),
  )
  return hashlib.sha256('\n'.join(parts).encode()).hexdigest()


@functools.cache
def _source_hash() -> str:
  """Hash of every file of seekax."""
  digest = hashlib.sha256()
  for path in sorted(_PACKAGE.rglob('*.py')):
    digest.update(str(path.relative_to(_PACKAGE)).encode())
    digest.update(path.read_bytes())
  return digest.hexdigest()


@functools.cache
def _register(record: type) -> None:
  """Lets programs be kept whose arguments are such; its fields are arrays."""
  if not all(
    field.metadata.get('pytree_node', True)
    for field in dataclasses.fields(record)
  ):
    raise TypeError(f'{record.__name__} has fields that are no arrays')
  jax.export.register_pytree_node_serialization(
    record,
    serialized_name=f'{record.__module__}.{record.__name__}',
    serialize_auxdata=lambda unused: b'',
    deserialize_auxdata=lambda unused: (),
  )


def _load(path: pathlib.Path, records: Sequence[type]) -> Any:
  """A program that was kept; None where there is none that can be used."""
  try:
    content = path.read_bytes()
  except OSError:
    return None
  import jax.export

  for record in records:
    _register(record)
  try:
    return jax.export.deserialize(bytearray(content))
  except Exception:  # A damaged file: the library says so in many ways.
    return None


def _export(
  path: pathlib.Path, function: Any, arguments: Any, records: Sequence[type]
) -> Any:
  """Traces a program and keeps it; None where that can't be."""
  import jax.export

  for record in records:
    _register(record)
  try:
    program = jax.export.export(function)(*arguments)
    content = bytes(program.serialize())
  except (ValueError, NotImplementedError):
    return None  # A kernel, or an argument with more than arrays in it.
  # A disk that is full costs the next start its time, not this one its end.
  with contextlib.suppress(OSError):
    write_atomically(path, content)
  return program
