"""A program that was traced once is not traced again."""

import pathlib
from unittest import mock

from absl.testing import absltest
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from seekax.machine import traced_programs
from seekax.machine.traced_programs import kept


@struct.dataclass
class Pair:
  one: jax.Array
  other: jax.Array


@struct.dataclass
class Named:
  value: jax.Array
  name: str = struct.field(pytree_node=False)


class KeptTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.traced = 0
    # JAX's own cache stays off: it would write to this folder ever after.
    there = mock.patch.object(traced_programs, '_folder', self.where)
    self.enter_context(there)

  def where(self):
    return str(self.folder) if self.is_on else ''

  is_on = True

  def make(self, description='d', records=(Pair,), **options):
    """As another process would make it."""

    def function(pair, key):
      self.traced += 1
      noise = jax.random.uniform(key, (3,))
      if isinstance(pair, Named):
        return pair.value + noise
      return Pair(pair.one + noise, pair.other * 2), key

    return kept(function, description, records, **options)

  def files(self):
    return list(self.folder.glob('traced-*'))

  def call(self, program, size=3):
    pair = Pair(jnp.arange(size, dtype=jnp.float32), jnp.ones(2))
    return program(pair, jax.random.key(1))

  def test_the_next_process_traces_nothing_and_finds_the_same(self):
    first, _ = self.call(self.make())
    self.assertLen(self.files(), 1)
    before = self.traced
    program = self.make()
    second, key = self.call(program)
    self.call(program)
    self.assertEqual(self.traced, before)
    np.testing.assert_array_equal(first.one, second.one)
    np.testing.assert_array_equal(first.other, second.other)
    self.assertEqual(key.dtype, jax.random.key(1).dtype)

  def test_what_it_depends_on_makes_another_program(self):
    self.call(self.make())
    self.call(self.make('another'))
    with jax.default_matmul_precision('highest'):
      self.call(self.make())
    self.assertLen(self.files(), 3)

  def test_a_damaged_file_is_made_anew(self):
    self.call(self.make())
    [path] = self.files()
    whole = path.read_bytes()
    for damaged in (b'', whole[:100], bytes(len(whole))):
      path.write_bytes(damaged)
      self.call(self.make())
      self.assertLen(path.read_bytes(), len(whole))

  def test_what_can_not_be_kept_is_compiled_all_the_same(self):
    program = self.make(records=(Pair,))
    found = program(Named(jnp.zeros(3), 'x'), jax.random.key(1))
    self.assertEqual(found.shape, (3,))
    self.assertEmpty(self.files())
    with self.assertRaisesRegex(TypeError, 'no arrays'):
      self.call(self.make(records=(Named,)))

  def test_without_a_cache_nothing_is_kept(self):
    self.is_on = False
    self.call(self.make())
    self.assertEmpty(self.files())

  def test_arguments_that_are_given_away_are_gone(self):
    program = self.make(donate_argnums=(0,))
    pair = Pair(jnp.zeros(3), jnp.ones(2))
    program(pair, jax.random.key(1))
    self.assertTrue(pair.one.is_deleted())


if __name__ == '__main__':
  absltest.main()
