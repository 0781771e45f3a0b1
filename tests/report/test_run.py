import dataclasses
import json
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

from absl.testing import absltest

from seekax.configuration import presets
from seekax.configuration.config import Config
from seekax.configuration.data import DataConfig
from seekax.configuration.model import ModelConfig
from seekax.configuration.train import TrainConfig
from seekax.planning.parameters import count_parameters
from seekax.report import plot_labels, plots
from seekax.report import run as report
from seekax.storage.manifest import StorageError

_FIELDS = [
  'heldout_bits_per_byte',
  'gzip_bits_per_byte',
  'xz_bits_per_byte',
  'tokens_per_second',
  'train_seconds',
  'compile_seconds',
  'peak_memory_bytes',
  'parameters_total',
  'parameters_activated',
  'parameters_mtp',
  'max_violation_last',
  'dollars',
]


def _run_info(model: ModelConfig) -> dict:
  config = Config(
    model=model,
    data=DataConfig(sequence_length=32, batch_size=8),
    train=TrainConfig(steps=4),
  )
  return {
    'config': dataclasses.asdict(config),
    'overrides': {'train.steps': 4},
    'command': 'seekax train --config=tiny --config.train.steps=4',
    'commit': 'abc123',
    'versions': {'python': '3.11.7', 'jax': '0.10.2'},
    'platform': {'device': 'cpu', 'num_devices': 1, 'cpus': 2},
    'started_from': '',
    'data': {
      'source': 'stdlib',
      'licence': 'PSF-2.0',
      'heldout_documents': 19,
      'heldout_bytes': 159224,
      'gzip_bits_per_byte': 2.33,
      'xz_bits_per_byte': 2.32,
    },
  }


def _train_row(step: int, model: ModelConfig, dollars=None) -> dict:
  return {
    'kind': 'train',
    'step': step,
    'tokens': 256 * step,
    'seconds': 0.5 * (step - 1),
    'compile_seconds': 3.0,
    'loss': 6.0 - step,
    'mtp_loss': 6.5 - step if model.mtp_depth else 0.0,
    'balance_loss': 0.0,
    'bits_per_byte': 4.0 - 0.5 * step,
    'gradient_norm': 1.0,
    'learning_rate': 1e-3,
    'tokens_per_second': None if step == 1 else 100.0 * step,
    'step_seconds': [] if step == 1 else [2.56 / step],
    'max_violation': [0.5 / step] * model.num_expert_layers,
    'max_violation_mtp': [0.9 / step] * model.mtp_depth,
    'batch_tokens': 256,
    'peak_memory_bytes': 1000 * step,
    'mfu': None,
    'dollars': dollars and dollars * step,
  }


def _rows(model: ModelConfig, dollars=None) -> list[dict]:
  rows = [_train_row(step, model, dollars) for step in (1, 2, 3, 4)]
  for step, size, documents in ((2, 39911, 4), (4, 159224, 19)):
    evaluation = {
      'kind': 'eval',
      'step': step,
      'tokens': 256 * step,
      'seconds': 0.5 * (step - 1),
      'heldout_bits_per_byte': 3.0 - 0.25 * step,
      'heldout_bytes': size,
      'heldout_documents': documents,
      'peak_memory_bytes': 9000,
      'dollars': dollars,
    }
    rows.append(evaluation)
  if model.uses_experts:
    load = [1] * (model.num_experts - 1) + [9]
    for step in (1, 4):
      row: dict[str, Any] = {'kind': 'load', 'step': step}
      row['layers'] = [load] * model.num_expert_layers
      row['mtp'] = [load] * model.mtp_depth
      rows.append(row)
  sample = {
    'prompt': 'def f(',
    'text': 'x):\n  return <script>alert(1)</script>',
  }
  rows.append({'kind': 'sample', 'step': 4, **sample})
  return rows


class ReportTest(absltest.TestCase):
  def _folder(self) -> pathlib.Path:
    return pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def _write(self, model=None, dollars=None, info=None, rows=None):
    """Makes a run, reports on it, returns its summary and its page."""
    model = model or presets.tiny()
    workdir = self._folder()
    info = _run_info(model) if info is None else info
    rows = _rows(model, dollars) if rows is None else rows
    (workdir / 'run.json').write_text(json.dumps(info))
    lines = ''.join(json.dumps(row) + '\n' for row in rows)
    (workdir / 'metrics.jsonl').write_text(lines)
    report.write(workdir)
    summary = json.loads((workdir / 'summary.json').read_text())
    return summary, (workdir / 'report.html').read_text(encoding='utf-8')

  def test_summary_has_the_documented_fields_and_values(self):
    model = presets.tiny()
    summary, _ = self._write(model, dollars=0.25)
    counts = count_parameters(model)
    self.assertEqual(list(summary), _FIELDS)
    self.assertEqual(
      summary,
      {
        'heldout_bits_per_byte': 2.0,
        'gzip_bits_per_byte': 2.33,
        'xz_bits_per_byte': 2.32,
        'tokens_per_second': 300.0,
        'train_seconds': 1.5,
        'compile_seconds': 3.0,
        'peak_memory_bytes': 9000,
        'parameters_total': counts.total,
        'parameters_activated': counts.activated,
        'parameters_mtp': counts.mtp,
        'max_violation_last': 0.9 / 4,
        'dollars': 1.0,
      },
    )

  def test_what_a_run_has_not_is_null(self):
    info = _run_info(presets.llama3_tiny())
    for key in ('data', 'platform', 'versions', 'overrides', 'commit'):
      del info[key]
    model = presets.llama3_tiny()
    summary, html = self._write(model, info=info, rows=[_train_row(1, model)])
    self.assertEqual(list(summary), _FIELDS)
    nulls = {key for key, value in summary.items() if value is None}
    self.assertEqual(
      nulls,
      set(_FIELDS[:4]) | {'max_violation_last', 'dollars'},
    )
    self.assertIn('no held-out text was scored yet', html)
    self.assertIn('Step 1 of 4', html)

  def test_finding_says_what_was_reached(self):
    _, html = self._write()
    self.assertRegex(
      html,
      r'mixture of experts \(\S+ activated\) reached 2\.00 bits per byte on '
      r'held-out text after 1\.02k tokens in 1\.5 seconds; gzip needs 2\.33, '
      r'xz 2\.32\.',
    )

  def test_part_of_the_heldout_text_is_not_sold_as_all(self):
    model = presets.tiny()
    rows = [row for row in _rows(model) if row['step'] < 4]
    _, html = self._write(rows=rows)
    self.assertIn('on part of the held-out text, 4 documents', html)

  def test_page_is_self_contained(self):
    _, html = self._write(dollars=0.25)
    self.assertNotRegex(html, r'(src|href)\s*=\s*["\']?\s*(https?:)?//')
    self.assertNotRegex(html, r'url\(\s*["\']?(?!#)')
    self.assertNotRegex(html, r'@import|<script|<link|<iframe')
    self.assertIn('<meta name="viewport"', html)

  def test_page_has_every_part(self):
    _, html = self._write(dollars=0.25)
    titles = re.findall('<h2>(.*?)</h2>', html)
    self.assertEqual(
      titles,
      ['Bits per byte', 'Optimization', 'Expert load', 'Speed and memory']
      + ['Samples', 'Config', 'How it was made'],
    )
    figures = re.findall('aria-label="(.*?)"', html)
    self.assertEqual(figures.count('bits per byte'), 3)
    for name in ('load at step 1', 'load at step 4', 'max violation'):
      self.assertIn(name, figures)
    for text in ('gzip 2.33', 'xz 2.32', 'held-out, all', 'MTP', 'PSF-2.0'):
      self.assertIn(text, html)

  def test_overridden_keys_are_marked(self):
    _, html = self._write()
    marked = re.findall('<tr class="marked"><th scope="row">(.*?)<', html)
    self.assertEqual(marked, ['steps'])

  def test_samples_are_escaped_and_keep_their_whitespace(self):
    _, html = self._write()
    self.assertIn(
      '<pre><span class="prompt">def f(</span>x):\n'
      '  return &lt;script&gt;alert(1)&lt;/script&gt;</pre>',
      html,
    )

  def test_hostile_bytes_still_make_a_page(self):
    model = presets.tiny()
    text = 'a\x00b\ud800c</pre><img src=x onerror=y>'
    sample = {'kind': 'sample', 'step': 1, 'prompt': '', 'text': text}
    _, html = self._write(rows=[_train_row(1, model), sample])
    self.assertNotIn('\x00', html)
    self.assertNotIn('<img', html)

  def test_dense_run_has_no_expert_parts(self):
    _, html = self._write(presets.llama3_tiny())
    self.assertIn('dense transformer', html)
    self.assertNotIn('Expert load', html)
    self.assertNotIn('max violation', html)
    self.assertNotIn('>MTP', html)

  def test_run_without_price_has_no_dollars(self):
    summary, html = self._write()
    self.assertIsNone(summary['dollars'])
    self.assertNotIn('cost, dollars', html)
    self.assertNotIn('Cost', html)

  def test_a_row_that_is_being_written_is_left_out(self):
    model = presets.tiny()
    workdir = self._folder()
    (workdir / 'run.json').write_text(json.dumps(_run_info(model)))
    row = json.dumps(_train_row(2, model))
    (workdir / 'metrics.jsonl').write_text(f'{row}\n{row[:20]}')
    report.write(workdir)
    self.assertTrue((workdir / 'report.html').is_file())

  def test_same_run_makes_the_same_page(self):
    first, second = self._write()[1], self._write()[1]
    title = re.compile('<h1>.*?</h1>|<title>.*?</title>')
    self.assertEqual(title.sub('', first), title.sub('', second))

  def test_missing_run_and_missing_rows_are_one_line(self):
    workdir = self._folder()
    with self.assertRaisesRegex(StorageError, 'no run.json') as caught:
      report.write(workdir)
    self.assertNotIn('\n', str(caught.exception))
    info = _run_info(presets.tiny())
    (workdir / 'run.json').write_text(json.dumps(info))
    with self.assertRaisesRegex(StorageError, 'no train row') as caught:
      report.write(workdir)
    self.assertNotIn('\n', str(caught.exception))
    info['config']['model']['attention'] = 'none'
    (workdir / 'run.json').write_text(json.dumps(info))
    with self.assertRaisesRegex(StorageError, 'model.attention'):
      report.write(workdir)

  def test_jax_is_not_imported(self):
    code = (
      'import sys; import seekax.report.run; '
      'sys.exit(bool({"jax", "jaxlib", "matplotlib.pyplot"} & set(sys.modules)))'
    )
    folder = pathlib.Path(report.__file__).parents[2]
    done = subprocess.run([sys.executable, '-c', code], cwd=folder, check=False)
    self.assertEqual(done.returncode, 0)


class PlotsTest(absltest.TestCase):
  def test_numbers_are_short(self):
    for number, text in (
      (671_026_419_200, '671B'),
      (37_552_297_472, '37.6B'),
      (999_950, '1M'),
      (1000, '1k'),
      (0.0022, '0.0022'),
      (0, '0'),
    ):
      self.assertEqual(plots.short(number), text)

  def test_labels_keep_apart_and_inside(self):
    wanted, heights = [100.0, 101.0, 99.5, 0.0], [12.0, 24.0, 12.0, 12.0]
    places = plot_labels._spread(wanted, heights, 110.0)
    spans = sorted(
      (place - height / 2, place + height / 2)
      for place, height in zip(places, heights, strict=True)
    )
    for (_, end), (start, _) in zip(spans, spans[1:], strict=False):
      self.assertLessEqual(end, start + 1e-9)
    self.assertLess(spans[-1][1], 120)

  def test_text_stays_text(self):
    series = plots.Series('curve', [(1, 2.0), (2, None), (3, 1.0)])
    svg = plots.lines('title', 'steps', [series], [plots.Level('gzip', 1.5)])
    for text in ('title', 'steps', 'curve', 'gzip'):
      self.assertRegex(svg, f'>{text}')

  def test_many_points_and_equal_values_are_drawn(self):
    points = [(step, 1.0) for step in range(1, 50_000)]
    svg = plots.lines('t', 'x', [plots.Series('c', points, smooth=True)])
    self.assertLess(len(svg), 100_000)

  def test_plotting_leaves_the_global_style_alone(self):
    import matplotlib

    with matplotlib.rc_context({'font.size': 23.0}):
      plots.lines('t', 'x', [plots.Series('c', [(1, 1.0)])])
      plots.load_map('t', [[0, 0], [1, 3]], ['a', 'b'])
      self.assertEqual(matplotlib.rcParams['font.size'], 23.0)


if __name__ == '__main__':
  absltest.main()
