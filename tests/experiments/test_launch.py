"""Launch files can be read, and what they start is a run that is allowed."""

import pathlib
import re
import subprocess

from absl import flags
from absl.testing import absltest
import yaml

from seekax.cli import flags as flags_lib
from seekax.cli import launcher
from seekax.config import check_mesh, mesh_sizes

_FOLDER = pathlib.Path(__file__).parents[2] / 'experiments' / 'launch'
_DEVICES = 2048


class LaunchTest(absltest.TestCase):
  def check(self, words, processes):
    """The command's config, on all devices."""
    values = flags.FlagValues()
    words = [word for word in words if word.startswith('--config')]
    words[0] = words[0].replace('configs/', f'{_FOLDER.parents[1]}/configs/')
    left, has_config = flags_lib.define_config(values, words)
    flags_lib.parse(values, left, 'train', '')
    self.assertTrue(has_config)
    config, _ = flags_lib.config_of(values)
    check_mesh(config, mesh_sizes(config.parallel.mesh, _DEVICES))
    self.assertEqual(config.data.num_shards % processes, 0)

  def test_slurm(self):
    path = _FOLDER / 'slurm.sbatch'
    subprocess.run(['bash', '-n', path], check=True)
    text = path.read_text()
    nodes = int(re.search(r'--nodes=(\d+)', text)[1])
    tasks = int(re.search(r'--ntasks-per-node=(\d+)', text)[1])
    self.assertEqual(nodes * tasks, _DEVICES)
    command = text[text.index('srun') :].replace('\\\n', ' ')
    self.check(command.split(), nodes * tasks)

  def test_kubernetes(self):
    (job,) = yaml.safe_load((_FOLDER / 'jobset.yaml').read_text())['spec'][
      'replicatedJobs'
    ]
    spec = job['template']['spec']
    (container,) = spec['template']['spec']['containers']
    env = {entry['name']: entry.get('value', '0') for entry in container['env']}
    found = launcher.described('', 0, -1, env)
    self.assertEqual(found.count, spec['completions'])
    gpus = container['resources']['limits']['nvidia.com/gpu']
    self.assertEqual(found.count * gpus, _DEVICES)
    self.check(container['command'], found.count)


if __name__ == '__main__':
  absltest.main()
