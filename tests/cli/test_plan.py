"""`seekax plan` as a user meets it."""

import contextlib
import io
import json
import pathlib
import re
import resource
import subprocess
import sys
from unittest import mock

from absl.testing import absltest, parameterized
import pytest

from seekax.cli import main
from seekax.dryrun import gpus

_CODE = """
import sys
from seekax.cli import main
code = main.main(sys.argv[1:])
heavy = [m for m in ('jax', 'flax', 'numpy', 'matplotlib') if m in sys.modules]
sys.exit(f'imported {heavy}' if heavy else code)
"""


def seekax(*args: str) -> tuple[int, str, str]:
  """Runs the command in this process: exit code, stdout, stderr."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    code = main.main(list(args))
  return code, out.getvalue(), err.getvalue()


class PlanTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def test_plain_plan_imports_no_jax_and_is_quick(self):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(
      [
        sys.executable,
        '-c',
        _CODE,
        'plan',
        '--config=v3_671b',
        f'--json={self.folder / "plan.json"}',
      ],
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(run.returncode, 0, msg=run.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of the processor: a busy machine doesn't make the command slow.
    seconds = after.ru_utime + after.ru_stime
    self.assertLess(seconds - before.ru_utime - before.ru_stime, 2)
    for words in ('671,026,419,200', 'pre-training', 'bubble', 'Serving'):
      self.assertIn(words, run.stdout)

  def test_json_has_every_key_and_rounds_nothing(self):
    path = self.folder / 'plan.json'
    code, _, _ = seekax(
      'plan',
      '--config=configs/v3_671b.py',
      '--hardware=h800',
      '--devices=2048',
      '--tokens=14.8T',
      '--price=2.0',
      '--layout=paper',
      f'--json={path}',
    )
    self.assertEqual(code, 0)
    found = json.loads(path.read_text())
    stages = ['pretraining', 'extension_32k', 'extension_128k']
    stages += ['posttraining', 'total']
    self.assertEqual(list(found['hours']), stages)
    self.assertEqual(list(found['dollars']), stages)
    self.assertEqual(
      list(found['memory_bytes']),
      ['parameters', 'optimizer', 'gradients', 'activations', 'temporaries']
      + ['total'],
    )
    for key in (
      'parameters_total',
      'parameters_activated',
      'gflop_per_token',
      'cache_bytes_per_token',
      'tokens_per_second_per_device',
      'mfu',
      'seconds_per_step',
    ):
      self.assertGreater(found[key], 0)
    rate = found['tokens_per_second_per_device']
    self.assertEqual(found['hours']['pretraining'], 14.8e12 / rate / 3600)

  def test_search_shows_the_cheapest_first(self):
    code, text, _ = seekax('plan', '--config=v2', '--search', '--devices=256')
    self.assertEqual(code, 0)
    table, layouts, head = text.split('\n\n')[:3]
    seconds = [float(line.split()[3]) for line in table.splitlines()[1:]]
    self.assertLen(seconds, 8)
    self.assertEqual(seconds, sorted(seconds))
    best = layouts.splitlines()[0].split()[1]
    self.assertIn(f'layout: {best}', head)
    code, text, _ = seekax(
      'plan', '--config=v2', '--devices=256', f'--layout={best}'
    )
    self.assertEqual(code, 0)
    self.assertIn(best, text)

  def test_comparison_has_a_dense_model_of_equal_activation(self):
    path = self.folder / 'plan.json'
    code, text, _ = seekax(
      'plan',
      '--config=v3_671b',
      '--compare=llama3_405b,v2',
      f'--json={path}',
    )
    self.assertEqual(code, 0)
    head = next(line for line in text.splitlines() if 'llama3_405b' in line)
    self.assertIn('v3_671b, dense', head)
    # Every column says its layout and precision, and why a price is missing.
    rows = {line.split('  ')[0]: line for line in text.splitlines()}
    self.assertEqual(rows['layout'].count("the paper's"), 1)
    self.assertEqual(rows['layout'].count('the cheapest found'), 3)
    self.assertEqual(
      rows['precision'].split()[1:], ['fp8', *['bfloat16'] * 2, 'fp8']
    )
    self.assertIn('llama3_405b: no price of output, its weights', text)
    others = json.loads(path.read_text())['compare']
    self.assertEqual(list(others), ['llama3_405b', 'v2', 'v3_671b, dense'])
    self.assertAlmostEqual(
      others['llama3_405b']['parameters_total'], 405.85e9, delta=1e7
    )

  def test_links_and_units_are_named(self):
    _, text, _ = seekax(
      'plan', '--config=v2_lite', '--devices=64', '--layout=fsdp:64'
    )
    for words in (
      'InfiniBand, between nodes',
      'NVLink, within one',
      'KB sent by all devices',
      'fsdp weights, gathered twice per micro-batch',
      'fsdp gradients, scattered per micro-batch',
      'exposed fsdp weights and gradients',
      'hidden behind arithmetic',
      'kept for CUDA, NCCL and gaps',
      '(as asked)',
    ):
      self.assertIn(words, text)

  def test_what_does_not_fit_in_the_extension_is_said(self):
    _, text, _ = seekax('plan', '--config=v3_671b')
    self.assertEqual(text.count('this layout (does not fit)'), 2)

  def test_a_device_without_fp8_is_said_to_have_none(self):
    code, text, _ = seekax(
      'plan', '--config=v3_671b', '--hardware=a100', '--devices=4096'
    )
    self.assertEqual(code, 0)
    self.assertIn('4,096 A100 in bfloat16', text)
    self.assertIn('A100 has no FP8', text)

  def test_tokens_and_price_are_the_configs_own_if_not_given(self):
    _, text, _ = seekax('plan', '--config=v3_671b')
    self.assertIn('14.8T tokens (the 242,940 steps of this config)', text)
    self.assertIn('$2.00 per device hour', text)
    one = ('plan', '--hardware=cpu', '--devices=1')
    path = self.folder / 'demo.json'
    _, text, _ = seekax(*one, '--config=demo', f'--json={path}')
    self.assertIn('demo: 1.516M tokens (the 740 steps of this config)', text)
    self.assertIn('$0.1 per device hour', text)
    # A model of 5e-5 of V3's FLOP per token isn't taught in V3's hours.
    hours = json.loads(path.read_text())['hours']
    share = 0.012035 / 250.5
    self.assertAlmostEqual(
      hours['posttraining'] / (5000 * 1515520 / 14.8e12 * share), 1, delta=1e-3
    )
    _, text, _ = seekax(*one, '--config=demo', '--price=3')
    self.assertIn('$3.00 per device hour', text)
    _, text, _ = seekax('plan', '--config=v3_671b', '--tokens=1T')
    self.assertIn('v3_671b: 1T tokens on', text)
    _, text, _ = seekax('plan', '--config=v3_extend_32k')
    self.assertIn('62.91B tokens (the 1,000 steps of this config)', text)
    self.assertNotIn('pre-training', text)

  def test_a_mesh_of_the_config_is_what_is_priced(self):
    code, text, _ = seekax(
      'plan',
      '--config=v3_671b',
      '--config.parallel.mesh=pipeline:16,data:-1,expert_node:8,expert:8',
    )
    self.assertEqual(code, 0)
    self.assertIn(
      'pipeline:16,expert_node:8,expert:8,data:2,remat:full (as asked)', text
    )

  def test_page_is_one_file_with_its_pictures(self):
    path = self.folder / 'plan.html'
    code, _, _ = seekax(
      'plan', '--config=v3_671b', '--compare=v2', f'--report={path}'
    )
    self.assertEqual(code, 0)
    page = path.read_text()
    self.assertEqual(page.count('<svg'), 4)
    for words in ('overlapped', 'activations', 'post-training', 'Serving'):
      self.assertIn(words, page)
    for words in ('KB over InfiniBand', 'KB over NVLink', 'in fp8', 'bfloat16'):
      self.assertIn(words, page)
    self.assertNotIn('http', page)
    self.assertNotIn('<script', page)

  def test_sharding_is_a_line_for_every_parameter(self):
    mesh = '--config.parallel.mesh=data:2,expert_node:2,expert:2'
    run = subprocess.run(
      [sys.executable, '-m', 'seekax', 'plan', '--config=tiny', '--sharding']
      + ['--devices=8', mesh],
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(run.returncode, 0, run.stderr)
    lines = {line.split('  ')[0]: line for line in run.stdout.splitlines()}
    gate = lines['expert_layers/experts/gate']
    self.assertIn('layers experts embed mlp', gate)
    self.assertIn('- expert_node+expert - -', gate)
    self.assertIn('- expert_node+expert data -', gate)
    self.assertIn('total', lines)

  @pytest.mark.slow
  def test_compile_counts_the_collectives_of_a_step(self):
    target = self.folder / 'plan.json'
    run = subprocess.run(
      [sys.executable, '-m', 'seekax', 'plan', '--config=tiny', '--compile']
      + ['--devices=4', '--config.parallel.mesh=data:2,expert:2']
      + ['--hardware=h100', f'--json={target}'],
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(run.returncode, 0, run.stderr)
    self.assertIn('Dry run on mesh data:2,expert:2', run.stdout)
    found = json.loads(target.read_text())
    self.assertEqual(found['arguments_bytes'], found['state_bytes'])
    kinds = {(row['kind'], row['axis']) for row in found['collectives']}
    self.assertIn(('all-to-all', 'expert'), kinds)

  def test_topology_without_the_plugin_says_what_to_install(self):
    with mock.patch.object(gpus, 'has_compiler', lambda: False):
      code, out, err = seekax(
        'plan', '--config=v3_671b', '--compile', '--topology=h100:256x8'
      )
    self.assertEqual(code, 2)
    self.assertEqual(out, '')
    self.assertLen(err.strip().splitlines(), 1)
    self.assertIn("pip install 'jax[cuda13]", err)

  def test_a_schedule_much_longer_than_the_run_is_there_at_once(self):
    code, text, _ = seekax(
      'plan',
      '--config=tiny',
      '--schedule',
      '--config.train.micro_batches=2',
      '--config.train.ramp_tokens=469000000000',
    )
    self.assertEqual(code, 0)
    self.assertLen(text.splitlines(), 21)

  def test_a_page_has_the_tables_of_search_and_comparison(self):
    path = self.folder / 'page.html'
    code, _, err = seekax(
      'plan',
      '--config=v2_lite',
      '--devices=64',
      '--search',
      '--compare=moonlight',
      f'--report={path}',
    )
    self.assertEqual(code, 0, msg=err)
    page = path.read_text()
    for title in ('Pre-training by layout', 'Figure by figure'):
      self.assertIn(title, page)
    # On a narrow screen every number says its head.
    for head in ('s/step', 'tokens/s/device', 'moonlight', 'device hours'):
      self.assertIn(f'data-head="{head}">', page)
    cells = re.findall(r'<td class="value"(.*?)>', page.split('</header>')[1])
    self.assertTrue(all('data-head=' in cell for cell in cells))

  def test_schedule_has_the_phases_of_the_report(self):
    code, text, _ = seekax('plan', '--config=v3_671b', '--schedule')
    self.assertEqual(code, 0)
    lines = text.splitlines()
    self.assertIn('learning rate', lines[0])
    self.assertEqual(lines[1].split()[2], '3,072')
    self.assertEqual(lines[-1].split()[2:4], ['15,360', '7.3e-06'])

  @parameterized.parameters(
    ((), '--config= is missing'),
    (('--config=v3_671b', '--hardware=h80'), "did you mean 'h800'?"),
    (('--config=v3_671b', '--hardware=l4'), 'links are not given'),
    (('--config=v3_671b', '--tokens=14.8Q'), 'no number of tokens'),
    (('--config=v3_671b', '--tokens=1.2.3T'), 'no number of tokens'),
    (('--config=v3_671b', '--tokens=0'), 'between one step'),
    (('--config=v3_671b', '--price=-2'), '--price=-2'),
    (('--config=v3_671b', '--devices=many'), '--devices=many'),
    (('--config=v3_671b', '--layout=papr'), "did you mean 'paper'?"),
    (
      ('--config=v3_671b', '--layout=paper', '--devices=1000'),
      '--devices=2048 works',
    ),
    (('--config=v3_671b', '--devices=2k'), 'write a whole number, as 2048'),
    (('--config=v3_671b', '--devices=2,048'), 'write a whole number'),
    (('--config=v3_671b', '--devices=1e3'), 'write a whole number'),
    (('--config=v3_671b', '--price=$2'), 'write dollars as a number'),
    (('--config=v3_671b', '--search=maybe'), 'write --search'),
    (('--config=v3_671b', '--posttraining_hours=-7'), 'is not in 0 to'),
    (('--config=v3_671b', '--posttraining_hours=1e300'), 'is not in 0 to'),
    (('--config=v3_671b', '--layout=data:'), 'data:-1 for the rest'),
    (('--config=v3_671b', '--layout=data:-2'), 'data:-1 for the rest'),
    (('--config=v3_671b', '--layout=expert:8,expert:16'), 'twice'),
    (('--config=v3_671b', '--layout=tensor:2,expert:8'), 'fast links join'),
    (('--config=v3_671b:tiny',), 'a batch of 8 sequences'),
    (('--config=v3_671b', '--sharding', '--json=x.json'), 'leave --json out'),
    (('--config=v3_671b', '--schedule', '--json=x.json'), 'leave --json out'),
    (('--config=v3_671b', '--schedule', '--hardware=h80'), 'leave --hardware'),
    (('--config=v3_671b', '--schedule', '--devices=-1'), 'leave --devices out'),
    (('--config=v3_671b', '--search', '--sharding'), 'leave --search out'),
    (('--config=v3_671b', '--search', '--layout=paper'), 'leave one of them'),
    (
      (
        '--config=v3_671b',
        '--search',
        '--config.parallel.mesh=data:32,expert_node:8,expert:8',
      ),
      'leave one of them out',
    ),
    (
      ('--config=v3_671b', '--config.parallel.mesh=data:4', '--layout=paper'),
      'leave one of them out',
    ),
    (
      (
        '--config=v3_671b',
        '--config.parallel.mesh=data:32,expert_node:8,expert:8',
      ),
      'train.micro_batches=128 is not divisible by data:32',
    ),
    (
      (
        '--config=v3_671b',
        '--config.parallel.mesh=data:32,expert_node:8,expert:8',
        '--config.train.micro_batches=1',
        '--config.train.ramp_tokens=0',
        '--config.train.ramp_micro_batches=1',
        '--config.data.batch_size=16384',
      ),
      '--config.parallel.mesh=data:32,expert_node:8,expert:8: it takes',
    ),
    (
      ('--config=v3_671b', '--config.parallel.mesh=data:4'),
      "parallel.mesh='data:4' has 4 devices, there are 2048",
    ),
    (
      (
        '--config=v3_671b',
        '--sharding',
        '--layout=tensor:2,whole_experts:True',
      ),
      'leave whole_experts out',
    ),
    (
      ('--config=v3_671b', '--layout=pipeline:7'),
      'no multiple; without --layout a plan finds one',
    ),
    (('--config=v3_671b', '--compare=v3_671b'), 'is --config already'),
    (('--config=v3_671b', '--compare=v2,v2'), 'v2 is compared already'),
    (
      ('--config=v3_671b', '--compare=foo'),
      '--compare=foo: seekax has no such config',
    ),
    (('--config=v3_671b', '--compare=v22'), "did you mean 'v2'?"),
    (('--config=v3_671b', '--json=/not/there/x.json'), 'No such file'),
    (('--config=v3_671b', '--report=/not/there/x.html'), 'No such file'),
    (('--config=v3_671b', '--serach'), "did you mean 'search'?"),
    (('--config=v3_671b', '--topology=h100:256x8'), 'give --compile too'),
    (
      ('--config=v3_671b', '--compile', '--topology=h10:2x8'),
      "did you mean 'h100'?",
    ),
    (('--config=v3_671b', '--compile', '--topology=h100'), 'h100:256x8'),
    (
      ('--config=v3_671b', '--compile', '--topology=h100:2x8', '--devices=15'),
      'leave --devices out',
    ),
    (
      (
        '--config=v3_671b',
        '--compile',
        '--topology=h100:2x8',
        '--hardware=h800',
      ),
      'leave --hardware out',
    ),
  )
  def test_bad_input_is_one_line_that_helps(self, args, words):
    code, out, err = seekax('plan', *args)
    self.assertEqual(code, 2)
    self.assertEqual(out, '')
    self.assertLen(err.strip().splitlines(), 1)
    self.assertStartsWith(err, 'seekax: ')
    self.assertIn(words, err)


if __name__ == '__main__':
  absltest.main()
