"""The released 671B checkpoint without its weights: files with holes for data."""

import json
import pathlib

from absl.testing import absltest

from seekax.configuration.presets import v3_671b
from seekax.storage import fp8, huggingface, names, weights
from seekax.storage.open import find
from seekax.storage.published_config import published_config
from seekax.storage.safetensors_header import Entry, header

SHARD_BYTES = 4_300_000_000


def entries_of(slot: names.Slot) -> list[Entry]:
  if not slot.in_fp8:
    return [Entry(slot.name, 'F32' if slot.is_bias else 'BF16', slot.shape)]
  name = slot.name + fp8.SCALE_SUFFIX
  return [
    Entry(slot.name, 'F8_E4M3', slot.shape),
    Entry(name, 'F32', fp8.scale_shape(slot.shape)),
  ]


def write_holes(folder: pathlib.Path) -> None:
  """A published folder of V3 in its full size, taking 20 MB of disk."""
  shards, size = [[]], 0
  for slot in names.slots(v3_671b()):
    entries = entries_of(slot)
    count = sum(entry.num_bytes for entry in entries)
    if size + count > SHARD_BYTES:
      shards.append([])
      size = 0
    shards[-1] += entries
    size += count
  listed = {}
  for number, entries in enumerate(shards):
    name = f'model-{number + 1:05d}-of-{len(shards):06d}.safetensors'
    start = header(entries, {'format': 'pt'})
    with open(folder / name, 'wb') as file:
      file.write(start)
      file.truncate(len(start) + sum(entry.num_bytes for entry in entries))
    listed |= {entry.name: name for entry in entries}
  (folder / weights.INDEX).write_text(json.dumps({'weight_map': listed}))
  published = published_config(v3_671b(), 'bfloat16', True, False)
  (folder / huggingface.CONFIG).write_text(json.dumps(published))


class FullSizeTest(absltest.TestCase):
  def test_released_checkpoint_is_understood_from_its_headers(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    write_holes(folder)
    found = find(folder)
    self.assertEqual(found.model, v3_671b())
    self.assertLen(found.tensors, 91_991)
    total = sum(tensor.num_bytes for tensor in found.tensors.values())
    self.assertEqual(total, 688_574_839_360)
    found.check()

  def test_one_tensor_too_few_is_noticed(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    write_holes(folder)
    name = 'model.layers.37.mlp.experts.201.down_proj.weight_scale_inv'
    found = find(folder)
    del found.tensors[name]
    with self.assertRaisesRegex(ValueError, name):
      found.check()


if __name__ == '__main__':
  absltest.main()
