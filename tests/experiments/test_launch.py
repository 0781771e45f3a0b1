"""Launch files can be read, and what they start is a run that is allowed."""

import pathlib
import re
import subprocess
import types

from absl import flags
from absl.testing import absltest
import yaml  # pyrefly: ignore[untyped-import]

from seekax.cli import flags as flags_lib
from seekax.cli import launcher, plan_flags
from seekax.configuration.fit_on_mesh import check_mesh
from seekax.configuration.mesh import mesh_sizes
from seekax.planning import hardware
from seekax.planning import plan as plan_lib
from seekax.planning.request import Request

_FOLDER = pathlib.Path(__file__).parents[2] / 'experiments' / 'launch'
_DEVICES, _DEVICE = 2048, 'h100'


class LaunchTest(absltest.TestCase):
  def check(self, words, processes, fraction):
    """The command's config, on all devices; what memory is planned for it."""
    values = flags.FlagValues()
    words = [word for word in words if word.startswith('--config')]
    words[0] = words[0].replace('configs/', f'{_FOLDER.parents[1]}/configs/')
    left, has_config = flags_lib.define_config(values, words)
    flags_lib.parse(values, left, 'train', '')
    self.assertTrue(has_config)
    config, _ = flags_lib.config_of(values)
    check_mesh(config, mesh_sizes(config.parallel.mesh, _DEVICES))
    self.assertEqual(config.data.num_shards % processes, 0)
    return self.check_memory(config, fraction)

  def check_memory(self, config, fraction):
    """The planner finds room for it within XLA's part of a GPU."""
    flag_values = types.SimpleNamespace(
      layout='', compile=False, sharding=False, devices=_DEVICES
    )
    layout, flag = plan_flags.layout_of(flag_values, config)
    device = hardware.DEVICES[_DEVICE]
    plan = plan_lib.make(
      Request(config, device, _DEVICES, 14.8e12, 2.0, layout=layout)
    )
    self.assertEqual(flag, f'--config.parallel.mesh={config.parallel.mesh}')
    self.assertEqual(plan.run.layout.pipeline, 16)
    self.assertEqual(plan.run.micro_batches, config.train.micro_batches)
    pool = fraction * device.memory_bytes
    self.assertLess(plan.memory.total, pool)
    self.assertGreater(device.memory_bytes - pool, hardware.RESERVED_BYTES)
    return plan.memory

  def test_slurm(self):
    path = _FOLDER / 'slurm.sbatch'
    subprocess.run(['bash', '-n', path], check=True)
    text = path.read_text()

    def stated(pattern):
      return re.findall(pattern, text)[0]

    nodes = int(stated(r'--nodes=(\d+)'))
    tasks = int(stated(r'--ntasks-per-node=(\d+)'))
    self.assertEqual(nodes * tasks, _DEVICES)
    command = text[text.index('srun') :].replace('\\\n', ' ')
    fraction = float(stated(r'MEM_FRACTION=([\d.]+)'))
    self.assertIn(f'{_DEVICE.upper()} with Slurm', text)
    planned = self.check(command.split(), nodes * tasks, fraction)
    expected = float(stated(r'expects (\d+) GB'))
    self.assertEqual(expected, round(planned.total / 1e9))

  def test_kubernetes(self):
    (job,) = yaml.safe_load((_FOLDER / 'jobset.yaml').read_text())['spec'][
      'replicatedJobs'
    ]
    spec = job['template']['spec']
    (container,) = spec['template']['spec']['containers']
    env = {entry['name']: entry.get('value', '0') for entry in container['env']}
    found = launcher.described('', 0, -1, env)
    assert found
    self.assertEqual(found.count, spec['completions'])
    gpus = container['resources']['limits']['nvidia.com/gpu']
    self.assertEqual(found.count * gpus, _DEVICES)
    fraction = float(env['XLA_PYTHON_CLIENT_MEM_FRACTION'])
    self.check(container['command'], found.count, fraction)


if __name__ == '__main__':
  absltest.main()
