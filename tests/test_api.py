"""Laws of the Python front door; README's example runs as printed."""

import ast
import os
import pathlib
import re
import subprocess
import sys
from typing import Any
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

import seekax
import short_runs

# A chat template in which the roles stand before what they say.
_TEMPLATE = (
  "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
  '{% if add_generation_prompt %}assistant:{% endif %}'
)


class ImportTest(absltest.TestCase):
  def test_import_takes_no_jax_and_names_what_there_is(self):
    code = (
      'import sys, seekax; print(dir(seekax), seekax.__version__);'
      'sys.exit("jax" in sys.modules or "numpy" in sys.modules)'
    )
    run = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True, check=False
    )
    self.assertEqual(run.returncode, 0, msg=run.stderr)
    for name in ('load', 'config', 'train', 'InputError'):
      self.assertIn(name, run.stdout)
    with self.assertRaises(AttributeError):
      _ = seekax.nothing_of_this_name


class ConfigTest(parameterized.TestCase):
  def test_overrides_are_keys_of_groups(self):
    config = seekax.config('demo:tiny', {'train.steps': 3, 'data.seed': 7})
    self.assertEqual((config.train.steps, config.data.seed), (3, 7))

  @parameterized.parameters(
    ('dem', {}, "did you mean 'demo'"),
    ('demo', {'train.step': 3}, "did you mean 'steps'"),
    ('demo', {'trian.steps': 3}, "did you mean 'train'"),
    ('demo', {'steps': 3}, 'write group.key'),
    ('demo', {'train.steps': 'many'}, 'is a str, not a int'),
    ('demo', {'train.steps': 0}, 'must be above 0'),
  )
  def test_what_can_not_be_is_refused_in_words(self, name, overrides, words):
    with self.assertRaisesRegex(seekax.InputError, re.escape(words)):
      seekax.config(name, overrides)


class ModelTest(parameterized.TestCase):
  """One short run, trained and used through the front door."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(absltest.FLAGS.test_tmpdir) / cls.__name__
    source = short_runs.write_corpus(cls.root / 'corpus')
    cls.config = seekax.config(
      'tiny',
      {
        'data.source': str(source),
        'data.heldout_fraction': 0.2,
        'train.steps': 2,
        'train.precision': 'float32',
        'train.compilation_cache': '',
        'model.num_layers': 2,
        'eval.every': 2,
        'eval.sample_every': 2,
        'eval.sample_tokens': 4,
        'eval.prompts': ('def f',),
      },
    )
    cls.workdir = cls.root / 'runs' / 'demo'
    cls.workdir.parent.mkdir(parents=True)
    cls.summary = seekax.train(cls.config, cls.workdir)
    (cls.workdir / 'chat_template.jinja').write_text(_TEMPLATE)
    # The cache of the machine's user stays as it is.
    with mock.patch.dict(os.environ, XDG_CACHE_HOME=str(cls.root)):
      cls.model = seekax.load(cls.workdir)

  def test_training_returns_the_summary_and_ends_where_it_is_finished(self):
    self.assertGreater(self.summary['heldout_bits_per_byte'], 1)
    again = seekax.train(self.config, self.workdir)
    self.assertEqual(again, self.summary)

  def test_another_run_and_other_peoples_files_are_refused(self):
    other = seekax.config('demo:tiny')
    with self.assertRaisesRegex(seekax.InputError, 'another config'):
      seekax.train(other, self.workdir)
    with self.assertRaisesRegex(seekax.InputError, 'corpus'):
      seekax.train(other, self.root / 'corpus')

  def test_a_text_of_a_batch_is_the_text_alone(self):
    prompts = ['def f', 'import os\nimport sys\n', 'x']
    ways: list[dict[str, Any]] = [
      {},
      dict(temperature=1.5, seed=3),
      dict(temperature=1.0, top_k=5, top_p=0.9, min_p=0.01, seed=4),
    ]
    for options in ways:
      together = self.model.generate(prompts, max_new_tokens=12, **options)
      alone = [
        self.model.generate(text, max_new_tokens=12, **options)
        for text in prompts
      ]
      self.assertEqual(together, alone)
      self.assertNotEmpty(together[0])

  def test_weights_in_memory_are_a_model_too(self):
    loaded = self.model
    made = seekax.Model(self.config, loaded.weights, loaded.tokenizer)
    options = dict(max_new_tokens=8, temperature=1.0, seed=2)
    self.assertEqual(
      made.generate(['def f', 'x'], **options),
      loaded.generate(['def f', 'x'], **options),
    )
    self.assertEqual(made.score('x = 1'), loaded.score('x = 1'))
    with self.assertRaisesRegex(seekax.InputError, 'no chat template'):
      made.chat([{'role': 'user', 'content': 'f'}])
    bare = seekax.Model(self.config, loaded.weights)
    self.assertEqual(bare.logits([[1, 2]]).shape[:2], (1, 2))
    with self.assertRaisesRegex(seekax.InputError, 'no tokenizer'):
      bare.generate('x')

  def test_a_text_ends_before_a_string_that_stops_it(self):
    text = self.model.generate('def f', max_new_tokens=24)
    word = text[len(text) // 2 :][:2]
    stopped = self.model.generate('def f', max_new_tokens=24, stop=word)
    self.assertEqual(stopped, text[: text.index(word)])

  def test_an_answer_is_what_follows_the_rendered_conversation(self):
    messages = [{'role': 'user', 'content': 'def f'}]
    answer = self.model.chat(messages, max_new_tokens=8)
    rendered = self.model.tokenizer.encode('user: def f\nassistant:')
    [expected] = self.model._continued([rendered], max_new_tokens=8)
    self.assertEqual(answer, expected)
    self.assertNotEmpty(answer)
    with self.assertRaises(seekax.InputError):
      self.model.chat([{'role': 'nobody', 'content': 'x'}])

  def test_scores_are_sums_of_the_logits(self):
    text = 'import os\nimport sys\n'
    [score, other] = self.model.score([text, 'x'])
    ids = self.model.tokenizer.encode(text)
    tokens = np.append(self.model.tokenizer.bos_id, ids)[None]
    logits = np.asarray(self.model.logits(tokens[:, :-1]), np.float64)[0]
    log_z = np.log(np.exp(logits).sum(axis=-1))
    chosen = logits[np.arange(len(ids)), ids] - log_z
    self.assertAlmostEqual(score['log_likelihood'], chosen.sum(), places=3)
    self.assertEqual(score['tokens'], len(ids))
    self.assertEqual(score['bytes'], len(text))
    alone = self.model.score('x')
    self.assertAlmostEqual(
      other['bits_per_byte'], alone['bits_per_byte'], places=4
    )

  def test_logits_are_pure(self):
    tokens = jnp.arange(12).reshape(2, 6)

    @jax.jit
    def loss(weights):
      return jnp.square(self.model.logits(tokens, weights)).mean()

    gradients = jax.grad(loss)(self.model.weights)
    sizes = [float(jnp.abs(x).sum()) for x in jax.tree.leaves(gradients.params)]
    self.assertGreater(sum(sizes), 0)
    logits = self.model.logits(np.arange(6)[None])
    np.testing.assert_allclose(
      logits[0], self.model.logits(tokens)[0], atol=1e-5
    )
    self.assertEqual(logits.dtype, jnp.float32)

  @parameterized.parameters(
    ('generate', ('x',), dict(temperature=-1), 'temperature=-1 is negative'),
    ('generate', ('x',), dict(top_p=0), 'top_p=0 is not in'),
    ('generate', ('x',), dict(min_p=2), 'min_p=2 is not in'),
    ('generate', ('x',), dict(seed=-1), 'seed=-1 is not in'),
    ('generate', ('x',), dict(max_new_tokens=0), 'is below 1'),
    ('generate', (9999 * 'x y ',), {}, 'the context of'),
    ('score', ('',), {}, 'an empty text'),
    ('logits', ([1, 2],), {}, 'wants integers'),
    ('logits', ([[1, -2]],), {}, 'ids from -2 to 1'),
    ('logits', ([[0.5]],), {}, 'wants integers'),
  )
  def test_what_can_not_be_is_refused_at_the_call(self, name, args, kw, words):
    with self.assertRaisesRegex(seekax.InputError, re.escape(words)):
      getattr(self.model, name)(*args, **kw)

  def test_the_example_of_the_readme_runs_as_printed(self):
    text = (short_runs.ROOT / 'README.md').read_text()
    [example] = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    self.assertLessEqual(len(ast.parse(example).body), 12)
    names = {}
    with mock.patch.object(seekax.api.compilation_cache, 'switch_on'):
      here = os.getcwd()
      os.chdir(self.root)
      try:
        exec(compile(example, 'README.md', 'exec'), names)  # Our own words.
      finally:
        os.chdir(here)
    self.assertEqual(
      jax.tree.structure(names['gradients']),
      jax.tree.structure(names['model'].weights),
    )


if __name__ == '__main__':
  absltest.main()
