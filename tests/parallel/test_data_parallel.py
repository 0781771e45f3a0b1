"""The same run on one device and on four virtual ones."""

import json
import os
import pathlib

from absl.testing import absltest
import numpy as np
import pytest

import short_runs


class DataParallelTest(absltest.TestCase):
  @pytest.mark.slow
  def test_four_devices_train_like_one(self):
    root = pathlib.Path(self.create_tempdir().full_path)
    source = short_runs.write_corpus(root / 'corpus')
    flags = os.environ.get('XLA_FLAGS', '')
    flags += ' --xla_force_host_platform_device_count=4'
    meshes = 'data:4', 'data:2,pipeline:2'
    losses = {}

    def train(workdir, mesh, *more):
      run = short_runs.seekax(
        'train',
        '--config=tiny',
        f'--workdir={workdir}',
        f'--config.data.source={source}',
        '--config.data.heldout_fraction=0.2',
        f'--config.parallel.mesh={mesh}',
        # What a mesh makes of MTP is in test_mesh_variants and test_pipeline.
        '--config.model.mtp_depth=0',
        '--config.eval.sample_tokens=1',
        '--config.train.steps=3',
        '--config.train.checkpoint_every=1',
        *more,
        env={**os.environ, 'XLA_FLAGS': flags},
      )
      self.assertEqual(run.returncode, 0, msg=run.stderr)
      return run.stderr

    for mesh in ('data:1', *meshes):
      workdir = root / mesh.replace(':', '').replace(',', '')
      train(workdir, mesh)
      rows = map(
        json.loads, (workdir / 'metrics.jsonl').read_text().split('\n')[:-1]
      )
      losses[mesh] = [row['loss'] for row in rows if row['kind'] == 'train']
    for mesh in meshes:
      with self.subTest(mesh):
        self.assertLen(losses[mesh], 3)
        # Adam makes more of the last bits of a gradient at every step.
        np.testing.assert_allclose(
          losses[mesh][0], losses['data:1'][0], rtol=1e-6
        )
        np.testing.assert_allclose(losses[mesh], losses['data:1'], rtol=1e-3)
    self.assertIn(
      'step 2 was saved on the mesh data:4; its arrays are laid out anew over '
      'fsdp:4',
      train(root / 'data4', 'fsdp:4', '--restore=previous'),
    )

  def test_more_devices_than_there_are_is_refused(self):
    root = pathlib.Path(self.create_tempdir().full_path)
    run = short_runs.seekax(
      'train',
      '--config=tiny',
      f'--workdir={root / "run"}',
      '--config.parallel.mesh=data:8',
    )
    self.assertEqual(run.returncode, 2)
    self.assertIn('has 8 devices, there are', run.stderr)
    self.assertNotIn('Traceback', run.stderr)


if __name__ == '__main__':
  absltest.main()
