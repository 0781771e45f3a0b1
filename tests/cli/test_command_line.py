"""The command line as a user meets it: every refusal is one clear line."""

import importlib.metadata
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import unittest
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np
import pytest

from seekax.configuration.compute import ComputeConfig
from seekax.storage import checkpoint
from seekax.storage import workdir as workdir_lib
import short_runs


def train_args(workdir: pathlib.Path, source: pathlib.Path, *more: str):
  return (
    'train',
    '--config=tiny',
    f'--workdir={workdir}',
    f'--config.data.source={source}',
    '--config.data.heldout_fraction=0.2',
    *more,
  )


# A command whose result latin-1 can't hold.
_PRINTS = """
import seekax.cli.report as report
from seekax.cli import main
report.run = lambda argv: print('caf\\xe9 \\u4e2d')
main.main(['report'])
"""


class RefusalTest(parameterized.TestCase):
  """What is refused before a model is touched."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    root = pathlib.Path(absltest.FLAGS.test_tmpdir) / cls.__name__
    cls.source = short_runs.write_corpus(root / 'corpus')
    cls.root = root

  def refused(self, *args: str, code: int = 2) -> str:
    run = short_runs.in_process(*args, cwd=self.root)
    self.assertEqual(run.returncode, code, msg=run.stderr)
    self.assertEqual(run.stdout, '')
    lines = run.stderr.strip().splitlines()
    self.assertStartsWith(lines[-1], 'seekax: ')
    return lines[-1]

  @parameterized.parameters(
    (('trian',), "did you mean 'train'?"),
    (('train', '--workdri=x'), "did you mean 'workdir'?"),
    (('train', '--config=tniy', '--workdir=x'), "did you mean 'tiny'?"),
    (('train', '--config=configs/nope.py', '--workdir=x'), 'no such file'),
    (
      ('train', '--config=configs/tiny.py', '--workdir=x'),
      'a config of its own, --config=tiny',
    ),
    (('train', '--config=tiny', '--workdir=x', '--config.=1'), 'config key'),
    (
      ('train', '--config=tiny', '--workdir=x', '--config.train.steps=-5'),
      'train.steps=-5 must be above 0',
    ),
    (
      ('train', '--config=tiny', '--workdir=x', '--config.eval.prompts=(1,)'),
      'holds [1], which is no str',
    ),
    (('train', '--config=tiny:tinny', '--workdir=x'), "did you mean 'tiny'?"),
    (
      ('train', '--config=tiny', '--workdir=x', '--config.model.num_expert=8'),
      "did you mean 'model.num_experts'?",
    ),
    (
      ('train', '--config=tiny', '--workdir=x', '--config.optim.steps=8'),
      "did you mean 'train.steps'?",
    ),
    (
      ('train', '--config=tiny', '--workdir=x', '--config.train.steps=many'),
      'train.steps',
    ),
    (
      ('train', '--config=tiny', '--workdir=x', '--config.model.num_experts=9'),
      'model.num_experts=9 is not divisible',
    ),
    (
      ('train', '--config=tiny', '--workdir=x', '--config.parallel.mesh=dta:2'),
      "did you mean 'data'?",
    ),
    (('train', '--config=tiny'), '--workdir= is missing'),
    (('train', '--workdir=/tmp/not-there-at-all'), '--config= is missing'),
    (('train', 'tiny', '--workdir=x'), 'is no flag'),
    (('generate', '--prompt=x'), '--checkpoint= is missing'),
    (('generate', '--checkpoint=/not/there'), 'does not exist'),
    (
      ('generate', '--checkpoint=x', '--temperature=-1'),
      'temperature=-1.0 is negative',
    ),
    (('generate', '--checkpoint=x', '--top_p=0'), 'not in (0, 1]'),
    (('generate', '--checkpoint=x', '--max_new_tokens=0'), 'is below 1'),
    (('generate', '--checkpoint=x', '--max_new_tokens=a'), 'max_new_tokens'),
    (('score', '--checkpoint=x'), 'give either'),
    (('score', '--checkpoint=x', '--text=/not/there'), 'No such file'),
    (('score', '--checkpoint=x', '--tokens=/not/there'), 'No such file'),
    (('report', '--workdir=/not/there'), 'is no workdir'),
    (('score', '--checkpoint=x', '--text=y', '--batch_size=0'), 'batch_size'),
    (
      ('train', '--config=tiny', '--workdir=x', '--config.train.seed=-1'),
      'train.seed=-1 is not in 0 to',
    ),
    (
      (
        'train',
        '--config=tiny',
        '--workdir=x',
        '--config.parallel.mesh=data:3',
      ),
      'data.batch_size=8 is not divisible by',
    ),
    (
      (
        'train',
        '--config=tiny',
        '--workdir=x',
        '--config.train.profile_steps=1:3',
      ),
      'begin at 2 or later',
    ),
    (('inspect', '/not/there'), 'does not exist'),
  )
  def test_bad_input_is_one_line_that_helps(self, args, message):
    self.assertIn(message, self.refused(*args))

  def test_a_config_file_that_fails_is_named(self):
    path = self.root / 'broken.py'
    path.write_text('def get_config(arg=""):\n  return nothing\n')
    line = self.refused('train', f'--config={path}', '--workdir=x')
    self.assertIn("NameError: name 'nothing' is not defined", line)

  def test_a_config_file_that_ends_the_process_is_named(self):
    path = self.root / 'leaves.py'
    path.write_text('raise SystemExit(7)\n')
    line = self.refused('train', f'--config={path}', '--workdir=x')
    self.assertIn('failed with SystemExit: 7', line)

  def test_a_bare_name_never_runs_a_file_of_the_current_folder(self):
    folder = self.root / 'foreign'
    (folder / 'configs').mkdir(parents=True)
    for path in ('configs/tiny.py', 'tiny.py', 'configs/mine.py'):
      (folder / path).write_text('raise SystemExit(7)')
    run = short_runs.in_process(
      'plan', '--config=tiny', '--schedule', cwd=folder
    )
    self.assertEqual(run.returncode, 0, msg=run.stderr)
    for name, words in (
      ('mine', 'write --config=./configs/mine.py'),
      ('./tiny.py', 'failed with SystemExit'),
    ):
      run = short_runs.in_process('plan', f'--config={name}', cwd=folder)
      self.assertEqual(run.returncode, 2)
      self.assertIn(words, run.stderr)

  def test_a_tilde_after_an_equals_sign_is_the_home_folder(self):
    home = self.root / 'home'
    (home / 'x').mkdir(parents=True, exist_ok=True)
    with mock.patch.dict(os.environ, HOME=str(home)):
      line = self.refused('report', '--workdir=~/x')
      self.assertIn(f'{home}/x is no workdir', line)
      args = train_args(self.root / 'w', self.source)
      line = self.refused(*args, '--config.train.init_from=~/x')
      self.assertIn(f'{home}/x is no workdir', line)
    self.assertFalse((self.root / '~').exists())

  def test_a_line_of_error_is_short_and_safe_for_a_terminal(self):
    line = self.refused('inspect', f'\x1b[31m{"x" * 5000}')
    self.assertLess(len(line), 500)
    self.assertIn(r'\x1b[31m', line)
    self.assertTrue(line.isprintable())

  @parameterized.parameters(
    ('missing', 'does not exist|not found|No such'),
    ('empty', 'empty|no text|no documents'),
    ('not_utf8', 'UTF-8'),
    ('short', 'one batch takes'),
  )
  def test_a_corpus_that_can_not_be_used_is_refused(self, kind, message):
    source = self.root / kind
    if kind != 'missing':
      source.mkdir(exist_ok=True)
    if kind == 'not_utf8':
      (source / 'a.txt').write_bytes(b'caf\xe9 ' * 10)
    if kind == 'short':
      for number in range(20):
        (source / f'{number}.txt').write_text(f'short {number}\n')
    line = self.refused(*train_args(self.root / 'w', source))
    self.assertRegex(line, message)

  def test_a_workdir_in_use_is_refused(self):
    workdir = self.root / 'used'
    workdir_lib.prepare(workdir)
    with workdir_lib.lock(workdir):
      line = self.refused(*train_args(workdir, self.source))
    self.assertIn('in use by another run', line)

  def test_a_workdir_below_a_file_is_refused(self):
    line = self.refused(*train_args(self.source / 'file00.py', self.source))
    self.assertIn('is not writable', line)

  def test_a_folder_of_others_is_refused_before_a_byte_is_written(self):
    theirs = self.root / 'theirs'
    (theirs / 'samples').mkdir(parents=True)
    names = ('samples/001.txt', 'tokenizer.json', 'report.html', 'run.json')
    for name in names:
      (theirs / name).write_text('{"mine": 1}')
    line = self.refused(*train_args(theirs, self.source))
    self.assertIn("holds 'report.html', 'run.json', 'samples' and 1 more", line)
    found = sorted(
      path.relative_to(theirs).as_posix()
      for path in theirs.rglob('*')
      if path.is_file()
    )
    self.assertEqual(found, sorted(names))
    for name in names:
      self.assertEqual((theirs / name).read_text(), '{"mine": 1}')

  def test_a_start_that_fails_leaves_no_folder(self):
    self.refused(*train_args(self.root / 'new' / 'er', self.root / 'nothing'))
    self.assertFalse((self.root / 'new').exists())
    empty = self.root / 'empty_before'
    empty.mkdir()
    self.refused(*train_args(empty, self.root / 'nothing'))
    self.assertEqual(list(empty.iterdir()), [])

  def test_tokens_that_are_no_integers_are_refused(self):
    path = self.root / 'floats.npy'
    np.save(path, np.zeros((2, 3)))
    line = self.refused('score', '--checkpoint=x', f'--tokens={path}')
    self.assertIn('integers [B, L] are wanted', line)

  def test_names_of_other_alphabets_are_printed_as_they_are(self):
    line = self.refused('report', '--workdir=/d\u00e9j\u00e0/\u4e2d\u6587')
    self.assertIn('/d\u00e9j\u00e0/\u4e2d\u6587 is no workdir', line)

  def test_a_mesh_that_a_cpu_lacks_devices_for_says_how_to_have_them(self):
    mesh = '--config.parallel.mesh=data:64'
    args = ('--config.data.batch_size=64', '--config.data.num_shards=1')
    line = self.refused(
      *train_args(self.root / 'mesh', self.source, mesh, *args)
    )
    self.assertIn('--xla_force_host_platform_device_count=64', line)
    self.assertNotIn('CUDA', line)

  def test_a_text_to_score_is_a_file_of_bounded_size(self):
    pipe, large = self.root / 'pipe', self.root / 'large'
    os.mkfifo(pipe)
    with open(large, 'wb') as file:
      file.truncate(4 << 30)
    for path, words in (
      (pipe, 'it is a pipe'),
      ('/dev/zero', 'it is a device'),
      (large, 'SEEKAX_LIMIT_FACTOR=10 allows'),
    ):
      line = self.refused('score', '--checkpoint=x', f'--text={path}')
      self.assertIn(words, line)

  def test_version_is_that_of_the_installation(self):
    run = short_runs.in_process('--version')
    version = importlib.metadata.version('seekax')
    self.assertEqual((run.returncode, run.stdout), (0, f'seekax {version}\n'))

  def test_help_lists_flags_presets_and_keys(self):
    run = short_runs.seekax('train', '--help')
    self.assertEqual(run.returncode, 0)
    for word in ('--workdir', 'v3_671b', 'model.num_experts', 'demo'):
      self.assertIn(word, run.stdout)

  @parameterized.parameters('', '1')
  def test_a_reader_that_went_away_ends_it_quietly(self, unbuffered):
    run = subprocess.run(
      f'{sys.executable} -m seekax --help | true; echo "${{PIPESTATUS[0]}}"',
      shell=True,
      executable='/bin/bash',
      env={**os.environ, 'PYTHONUNBUFFERED': unbuffered},
      capture_output=True,
      text=True,
      check=True,
    )
    self.assertEqual((run.stdout, run.stderr), ('0\n', ''))

  @unittest.skipUnless(os.path.exists('/dev/full'), 'Linux has it')
  def test_a_full_disk_behind_stdout_is_a_line(self):
    with open('/dev/full', 'w') as full:
      run = subprocess.run(
        short_runs.command('--help'),
        stdout=full,
        stderr=subprocess.PIPE,
        text=True,
      )
    self.assertEqual(run.returncode, 2)
    self.assertStartsWith(run.stderr, 'seekax: [Errno 28] No space left on')
    self.assertEndsWith(run.stderr, 'make room, or write elsewhere\n')

  def test_a_terminal_that_lacks_a_character_gets_another(self):
    run = subprocess.run(
      [sys.executable, '-c', _PRINTS],
      env={**os.environ, 'PYTHONIOENCODING': 'latin-1'},
      capture_output=True,
      check=True,
    )
    self.assertEqual(run.stdout, b'caf\xe9 ?\n')

  def test_help_comes_at_once(self):
    start = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    run = short_runs.seekax('--help')
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - start
    # It takes a tenth of this; JAX alone would take more than a second.
    self.assertLess(seconds, 5)
    for command in ('train', 'generate', 'score', 'inspect', 'report'):
      self.assertIn(command, run.stdout)


class RunTest(parameterized.TestCase):
  """One real run, through the command line."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    root = pathlib.Path(absltest.FLAGS.test_tmpdir) / cls.__name__
    cls.root = root
    cls.source = short_runs.write_corpus(root / 'corpus')
    cls.workdir = root / 'run'
    cls.args = train_args(
      cls.workdir,
      cls.source,
      '--config.train.steps=80',
      '--config.train.checkpoint_every=20',
      '--config.eval.every=40',
      '--config.eval.sample_every=40',
    )
    # Killed without warning in mid-run, then the same command again.
    process = short_runs.start(*cls.args)
    # The save of step 40 waits for that of 20.
    short_runs.wait_for_step(process, 42)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    cls.killed_at = checkpoint.proven_steps(cls.workdir / 'checkpoints')
    cls.trained = short_runs.seekax(*cls.args)

  @pytest.mark.slow
  def test_kill_and_the_same_command_ends_like_an_unbroken_run(self):
    self.assertNotEmpty(self.killed_at)
    self.assertLess(self.killed_at[-1], 80)
    self.assertEqual(self.trained.returncode, 0, msg=self.trained.stderr)
    other = self.root / 'unbroken'
    command, *rest = [arg for arg in self.args if 'workdir' not in arg]
    unbroken = short_runs.seekax(command, f'--workdir={other}', *rest)
    self.assertEqual(unbroken.returncode, 0, msg=unbroken.stderr)
    hashes = [
      short_runs.seekax('inspect', '--hash', str(workdir)).stdout
      for workdir in (self.workdir, other)
    ]
    self.assertLen(hashes[0].strip(), 64)
    self.assertEqual(hashes[0], hashes[1])

  def test_stdout_is_the_summary_alone(self):
    summary = json.loads(self.trained.stdout)
    kept = json.loads((self.workdir / 'summary.json').read_text())
    self.assertEqual(summary, kept)

  def test_another_config_is_refused_with_the_difference(self):
    run = short_runs.in_process(*self.args, '--config.model.num_layers=4')
    self.assertEqual(run.returncode, 2)
    self.assertIn('model.num_layers: 3 there, 4 here', run.stderr)

  def test_keys_that_touch_no_state_may_change(self):
    run = short_runs.in_process(*self.args, '--config.train.profile_steps=5:6')
    self.assertEqual(run.returncode, 0, msg=run.stderr)

  def test_what_will_run_is_said_in_five_lines(self):
    lines = self.trained.stderr.splitlines()
    [start] = [i for i, line in enumerate(lines) if line.startswith('config:')]
    self.assertEqual(
      [line.split(':')[0] for line in lines[start : start + 5]],
      ['config', 'model', 'data', 'device', 'plan'],
    )
    self.assertIn("seekax's own tiny", lines[start])
    self.assertNotIn('n/a', self.trained.stderr)

  def test_a_finished_run_says_so(self):
    run = short_runs.in_process(*self.args)
    self.assertEqual(run.returncode, 0, msg=run.stderr)
    self.assertEqual(
      run.stderr, 'finished at 80/80; --config.train.steps=N goes on\n'
    )
    self.assertEqual(json.loads(run.stdout), json.loads(self.trained.stdout))

  def test_how_it_is_computed_may_change_and_is_said(self):
    changed = {
      'attention_backend': 'plain',
      'latent_attention_backend': 'plain',
      'grouped_matmul': 'ragged',
      'remat': 'full',
      'unroll_layers': 0,
      'exchange': 'gather',
      'exchange_slack': 2.0,
      'dispatch_dtype': 'float8',
    }
    self.assertEqual(changed.keys(), vars(ComputeConfig()).keys())
    keys = (f'--config.compute.{key}={x}' for key, x in changed.items())
    run = short_runs.in_process(*self.args, *keys)
    self.assertEqual(run.returncode, 0, msg=run.stderr)
    *said, finished = run.stderr.splitlines()
    self.assertIn('finished at 80/80', finished)
    self.assertLen(said, len(changed))
    self.assertIn("compute.remat: 'none' before, 'full' now", said)

  def test_more_steps_are_refused_where_earlier_ones_would_be_others(self):
    more = ('--config.train.steps=90', f'--workdir={self.workdir}')
    run = short_runs.in_process('train', *more)
    self.assertEqual(run.returncode, 2)
    self.assertIn('learning_rate of step 14', run.stderr)
    self.assertIn('--config.optim.decay_tokens=17408 ends it', run.stderr)

  @pytest.mark.slow
  def test_more_steps_go_on_where_the_schedule_allows_it(self):
    workdir = shutil.copytree(self.workdir, self.root / 'longer')
    more = (
      '--config.train.steps=83',
      '--config.optim.decay_tokens=17408',
      '--config.train.checkpoint_every=100',
      # It is computed in another way from here on.
      '--config.compute.remat=full',
      '--config.compute.unroll_layers=0',
      '--config.compute.grouped_matmul=ragged',
      '--config.compute.attention_backend=plain',
    )
    run = short_runs.seekax('train', f'--workdir={workdir}', *more)
    self.assertEqual(run.returncode, 0, msg=run.stderr)
    self.assertIn('step 81/83', run.stderr)
    self.assertIn("compute.remat: 'none' before, 'full' now", run.stderr)
    self.assertEqual(checkpoint.newest(workdir / 'checkpoints'), 83)
    again = short_runs.in_process('train', f'--workdir={workdir}')
    self.assertIn('finished at 83/83', again.stderr)

  def test_a_run_goes_on_from_any_folder(self):
    kept = workdir_lib.read_run(self.workdir)
    self.assertTrue(os.path.isabs(kept['config']['data']['source']))
    self.assertEqual(kept['folder'], os.getcwd())
    run = short_runs.in_process(
      'train', f'--workdir={self.workdir}', cwd=self.root
    )
    self.assertIn('finished at 80/80', run.stderr)

  def test_generate_prints_the_continuation_alone(self):
    args = ('--prompt=def f', '--max_new_tokens=8', '--seed=1')
    args = ('generate', f'--checkpoint={self.workdir}', *args)
    greedy = short_runs.seekax(*args)
    self.assertEqual(greedy.returncode, 0, msg=greedy.stderr)
    self.assertNotEmpty(greedy.stdout)
    self.assertRegex(
      greedy.stderr, r'8 tokens, [0-9.]+ tokens/s; --max_new_tokens is reached'
    )
    first = greedy.stdout[:1]
    echoed = short_runs.seekax(*args, '--echo', f'--stop={first}')
    self.assertEqual(echoed.stdout, 'def f')
    self.assertNotIn('is reached', echoed.stderr)
    drawn = short_runs.seekax(*args, '--temperature=5')
    self.assertNotEqual(greedy.stdout, drawn.stdout)

  @pytest.mark.slow
  def test_what_one_call_compiled_the_next_one_takes_from_the_disk(self):
    cache = self.root / 'cache'
    kept = {k: v for k, v in os.environ.items() if 'COMPILATION' not in k}
    kept['XDG_CACHE_HOME'] = str(cache)
    args = ('generate', f'--checkpoint={self.workdir}', '--max_new_tokens=300')
    texts, entries = [], []
    for _ in range(2):
      run = short_runs.seekax(*args, '--prompt=def f', env=kept)
      self.assertEqual(run.returncode, 0, msg=run.stderr)
      self.assertIn('--max_new_tokens=300 is more than the context', run.stderr)
      texts.append(run.stdout)
      entries.append(sorted(cache.rglob('*-cache')))
    self.assertNotEmpty(entries[0])
    self.assertEqual(*entries)
    self.assertEqual(*texts)

  def test_a_prompt_longer_than_the_context_is_refused(self):
    run = short_runs.seekax(
      'generate', f'--checkpoint={self.workdir}', f'--prompt={"xyz " * 900}'
    )
    self.assertEqual(run.returncode, 2)
    self.assertIn('the context of 256 takes 1 to 255', run.stderr)
    self.assertNotIn('Traceback', run.stderr)

  def test_score_text_and_tokens(self):
    path = self.source / 'file00.py'
    run = short_runs.seekax(
      'score', f'--checkpoint={self.workdir}', f'--text={path}'
    )
    self.assertEqual(run.returncode, 0, msg=run.stderr)
    scored = json.loads(run.stdout.splitlines()[-1])
    self.assertEqual(scored['bytes'], path.stat().st_size)
    self.assertBetween(scored['bits_per_byte'], 0.05, 8)
    tokens = np.arange(24, dtype=np.uint16).reshape(2, 12)
    np.save(self.root / 'tokens.npy', tokens)
    logits, mtp = self.root / 'logits.npy', self.root / 'mtp.npy'
    run = short_runs.seekax(
      'score',
      f'--checkpoint={self.workdir}',
      f'--tokens={self.root / "tokens.npy"}',
      f'--logits_out={logits}',
      f'--mtp_logits_out={mtp}',
    )
    self.assertEqual(run.returncode, 0, msg=run.stderr)
    self.assertEqual(json.loads(run.stdout)['tokens'], 22)
    self.assertEqual(np.load(logits).shape, (2, 12, 512))
    self.assertEqual(np.load(logits).dtype, np.float32)
    missing = np.isnan(np.load(mtp)).all(axis=-1)
    self.assertEqual(missing.shape, (1, 2, 12))
    self.assertTrue(missing[:, :, -1].all())
    self.assertFalse(missing[:, :, :-1].any())

  def test_tokens_outside_the_vocabulary_are_refused(self):
    np.save(self.root / 'large.npy', np.full((1, 3), 512))
    run = short_runs.seekax(
      'score',
      f'--checkpoint={self.workdir}',
      f'--tokens={self.root / "large.npy"}',
    )
    self.assertEqual(run.returncode, 2)
    self.assertIn('the vocabulary has 0 to 511', run.stderr)

  def test_inspect_verifies(self):
    run = short_runs.seekax('inspect', str(self.workdir), '--verify')
    self.assertIn('verified: [60, 80]', run.stdout)
    self.assertIn('parameters_total: 353952', run.stdout)

  def test_report_on_demand(self):
    (self.workdir / 'report.html').unlink(missing_ok=True)
    run = short_runs.seekax('report', f'--workdir={self.workdir}')
    self.assertEqual(run.returncode, 0, msg=run.stderr)
    self.assertTrue((self.workdir / 'report.html').is_file())


class StopTest(parameterized.TestCase):
  @parameterized.parameters((signal.SIGINT, 130), (signal.SIGTERM, 143))
  @pytest.mark.slow
  def test_a_signal_saves_and_says_how_to_go_on(self, number, code):
    root = pathlib.Path(self.create_tempdir().full_path)
    source = short_runs.write_corpus(root / 'corpus')
    workdir = root / 'run'
    process = short_runs.start(
      *train_args(workdir, source, '--config.train.steps=100000')
    )
    short_runs.wait_for_step(process, 3)
    os.kill(process.pid, number)
    _, stderr = process.communicate()
    self.assertEqual(process.returncode, code)
    self.assertIn(f'go on with: seekax train --workdir={workdir}', stderr)
    self.assertNotIn('Traceback', stderr)
    newest = checkpoint.newest(workdir / workdir_lib.CHECKPOINTS)
    self.assertGreaterEqual(newest or 0, 3)

  @pytest.mark.slow
  def test_a_loss_that_is_no_number_exits_with_3(self):
    root = pathlib.Path(self.create_tempdir().full_path)
    source = short_runs.write_corpus(root / 'corpus')
    run = short_runs.seekax(
      *train_args(root / 'run', source, '--config.optim.learning_rate=1e30')
    )
    self.assertEqual(run.returncode, 3)
    self.assertIn('no checkpoint had been saved', run.stderr)
    self.assertNotIn('Traceback', run.stderr)


if __name__ == '__main__':
  absltest.main()
