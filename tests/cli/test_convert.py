"""Published weights through the command line; refusals are one line each."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import shutil
import signal

from absl.testing import absltest, parameterized
import numpy as np

import published
from seekax.cli import main as cli
from seekax.data import tokenizer_training
from seekax.storage.weights import REFUSED
import short_runs


def call(*args: str) -> tuple[int | str | None, str, str]:
  """The command line in this process: exit code, stdout, stderr."""
  out, err = io.StringIO(), io.StringIO()
  handler = signal.getsignal(signal.SIGTERM)
  try:
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      try:
        code = cli.main(list(args))
      except SystemExit as exit:
        code = exit.code
  finally:
    signal.signal(signal.SIGTERM, handler)
  return code, out.getvalue(), err.getvalue()


# With room for the ids of a tokenizer.
MODEL = dataclasses.replace(published.SMALL, vocab_size=300)


class CliCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    self.source, self.target = self.root / 'source', self.root / 'target'
    self.made = published.tensors(MODEL, 'BF16')
    self.write()

  def write(self, made=None, **config):
    """Writes the source anew."""
    shutil.rmtree(self.source, ignore_errors=True)
    made = self.made if made is None else made
    fields = published.fields(MODEL, made, **config)
    published.write_folder(self.source, fields, made, 2)
    tokenizer_training.train(['x y'], 258).save(self.source / 'tokenizer.json')

  def convert(self, *more: str):
    return call(
      'convert', f'--source={self.source}', f'--target={self.target}', *more
    )


class RefusedTest(CliCase):
  def refused(self, *args: str) -> str:
    """The one line of a refusal, which wrote nothing."""
    before = sorted(self.root.rglob('*'))
    code, out, err = call(*args)
    self.assertEqual(code, 2, msg=err)
    self.assertEqual(out, '')
    self.assertLen(err.splitlines(), 1)
    self.assertStartsWith(err, 'seekax: ')
    self.assertLess(len(err), 1500)
    self.assertEqual(sorted(self.root.rglob('*')), before)
    return err

  def refused_everywhere(self, *words: str):
    """By every command that takes weights."""
    for args in (*self.loading(self.source), ('inspect', self.source)):
      verify = ('--verify',) if args[0] == 'inspect' else ()
      line = self.refused(*map(str, args), *verify)
      for word in words:
        self.assertIn(word, line, msg=args)

  def loading(self, path: pathlib.Path):
    tokens = self.root / 'tokens.npy'
    np.save(tokens, np.zeros((1, 3), np.int32))
    return (
      ('convert', f'--source={path}', f'--target={self.target}'),
      ('score', f'--checkpoint={path}', f'--tokens={tokens}'),
      ('generate', f'--checkpoint={path}', '--prompt=x'),
    )

  @parameterized.parameters(
    ((), '--source= is missing'),
    (('--source=x',), '--target= is missing'),
    (('--source=x', '--target=y', '--format=gguf'), 'format'),
    (('--source=x', '--target=y', '--dtype=int4'), 'dtype'),
    (('--source=x', '--target=y', '--mtp=maybe'), 'mtp'),
    (('--source=x', '--target=y', '--fromat=seekax'), "did you mean 'format'"),
    (('--source=x', '--target=y', '--shard_size=5'), '5GB or 500MB'),
    (('--source=x', '--target=y', '--shard_size=0GB'), '5GB or 500MB'),
    (('--source=x', '--target=y', '--shard_size=-1GB'), '5GB or 500MB'),
    (('--source=x', '--target=y', '--shard_size=5PB'), '5GB or 500MB'),
    (('--source=x', '--target=y', '--shard_size=nanGB'), '5GB or 500MB'),
    (
      ('--source=x', '--target=y', f'--shard_size={"9" * 400}GB'),
      '5GB or 500MB',
    ),
    (('source', 'target'), 'is no flag'),
    (('--source=/not/there', '--target=y'), '/not/there does not exist'),
  )
  def test_a_bad_flag_is_one_line(self, args, message):
    self.assertIn(message, self.refused('convert', *args))

  @parameterized.parameters(*REFUSED)
  def test_a_file_that_may_run_code_is_refused_by_its_type(self, suffix):
    path = self.root / f'model{suffix}'
    path.write_bytes(b'\x80\x04cos\nsystem\n')
    for args in self.loading(path):
      self.assertRegex(self.refused(*args), f'{suffix} file.*safetensors')

  def test_inspect_refuses_such_a_file_by_its_type_too(self):
    path = self.root / 'model.pt'
    path.write_bytes(b'\x80\x04cos\nsystem\n')
    self.assertRegex(self.refused('inspect', str(path)), '.pt file.*safetens')

  def test_a_folder_of_pickles_points_to_safetensors(self):
    for path in self.source.glob('model*'):
      path.unlink()
    (self.source / 'pytorch_model.bin').write_bytes(b'\x80')
    self.refused_everywhere('pytorch_model.bin', 'safetensors')

  @parameterized.parameters(
    {'model_type': 'deepseek_v32'},
    {'hidden_act': 'gelu'},
    {'tie_word_embeddings': True},
    {'attention_bias': True},
    {'scoring_func': 'softmax'},
    {'moe_layer_freq': 2},
    {'n_group': 3},
    {'hidden_size': -1},
    {'num_hidden_layers': 10**30},
    {'num_attention_heads': [1]},
    {'rms_norm_eps': float('nan')},
    {'rope_scaling': {'type': 'linear', 'factor': 2.0}},
    {'rope_scaling': {'type': ['yarn']}},
    {'quantization_config': {'quant_method': 'awq'}},
    {'head_dim': 77},
    {'vocab_size': 301},
    {'num_hidden_layers': 2**31 - 1},
  )
  def test_a_bad_config_is_one_line(self, **fields):
    self.write(**fields)
    line = self.refused(
      'convert', f'--source={self.source}', f'--target={self.target}'
    )
    self.assertIn(str(self.source), line)
    self.refused('inspect', str(self.source), '--verify')

  def test_a_context_of_one_position_is_one_line(self):
    self.write(max_position_embeddings=1)
    args = (f'--source={self.source}', f'--target={self.target}')
    self.assertIn('mtp_depth', self.refused('convert', *args))

  @parameterized.parameters(
    'config', 'index', 'header', 'name', 'short', 'lacks', 'shape', 'dtype'
  )
  def test_a_bad_folder_is_one_line_with_file_and_tensor(self, kind):
    shard = self.source / 'model-00002-of-00002.safetensors'
    name = 'model.norm.weight'
    words = [str(self.source)]
    match kind:
      case 'config':
        (self.source / 'config.json').write_bytes(b'[' * 10**6)
      case 'index':
        published.write_index(self.source, dict.fromkeys(self.made, '/etc/x'))
      case 'header':
        published.write_raw(shard, b'{' * 10**6)
      case 'name':
        published.write_raw(shard, b'{"\\u0000\\ud800": 1}')
      case 'short':
        os.truncate(shard, shard.stat().st_size - 1)
      case 'lacks':
        del self.made[name]
      case 'shape':
        self.made[name] = self.made[name][1:]
      case 'dtype':
        self.made[name] = self.made[name].astype(np.float16)
    if kind in ('lacks', 'shape', 'dtype'):
      words.append(repr(name))
      self.write()
    self.refused_everywhere(*words)

  def test_a_tokenizer_that_does_not_fit_is_one_line(self):
    made = published.tensors(published.SMALL, 'BF16')
    fields = published.fields(published.SMALL, made)
    published.write_folder(self.source, fields, made, 2)
    self.refused_everywhere('tokenizer.json', 'only 29 rows')

  def test_a_target_that_can_not_be_used_is_one_line(self):
    self.target.mkdir()
    (self.target / 'notes.txt').write_text('mine')
    args = ('convert', f'--source={self.source}')
    self.assertIn('notes.txt', self.refused(*args, f'--target={self.target}'))
    line = self.refused(*args, f'--target={self.source}/sub')
    self.assertIn('lie in each other', line)
    line = self.refused(*args, f'--target={self.target}/notes.txt/sub')
    self.assertIn('notes.txt/sub', line)

  def test_text_without_a_tokenizer_says_what_is_missing(self):
    (self.source / 'tokenizer.json').unlink()
    (self.root / 'text').write_text('hello')
    for args in (
      ('generate', f'--checkpoint={self.source}', '--prompt=x'),
      ('score', f'--checkpoint={self.source}', f'--text={self.root}/text'),
    ):
      self.assertIn('has no tokenizer.json', self.refused(*args))


class EndIdsTest(CliCase):
  """Several ids may end a text; they go wherever the model goes."""

  def ends(self, folder) -> str:
    code, out, err = call('inspect', str(folder))
    self.assertEqual(code, 0, msg=err)
    [line] = [x for x in out.splitlines() if x.startswith('tokenizer:')]
    return line

  def test_they_are_shown_and_survive_both_ways(self):
    self.write(eos_token_id=[1, 2])
    path = self.source / 'generation_config.json'
    path.write_text('{"eos_token_id": 3, "top_p": 0.9}')
    self.assertIn('ends at [1, 2, 3]', self.ends(self.source))
    self.convert()
    self.assertIn('ends at [1, 2, 3]', self.ends(self.target))
    back = str(self.root / 'back')
    call(
      'convert',
      f'--source={self.target}',
      f'--target={back}',
      '--format=huggingface',
    )
    self.assertIn('ends at [1, 2, 3]', self.ends(back))
    fields = json.loads(pathlib.Path(back, 'config.json').read_text())
    self.assertEqual(fields['eos_token_id'], [1, 2])

  def test_an_id_that_is_none_is_refused(self):
    self.write(eos_token_id='<|eos|>')
    self.assertIn('unusable: ', self.ends(self.source))
    self.assertIn("eos_token_id='<|eos|>' is neither", self.ends(self.source))


class ConvertTest(CliCase):
  def test_there_and_back_and_again(self):
    code, out, err = self.convert('--shard_size=20KB')
    self.assertEqual((code, out), (0, f'{self.target}\n'), msg=err)
    count = len(list((self.target / 'weights').glob('*.safetensors')))
    lines = err.splitlines()
    self.assertLen(lines, count)
    self.assertStartsWith(lines[0], f'1/{count} model-00001-of-')
    code, out, err = self.convert('--shard_size=20KB')
    self.assertEqual((code, out), (0, f'{self.target}\n'))
    self.assertEqual(err, f'{self.target} is complete already\n')
    back = self.root / 'back'
    code, _, err = call(
      'convert',
      f'--source={self.target}',
      f'--target={back}',
      '--format=huggingface',
    )
    self.assertEqual(code, 0, msg=err)
    self.assertEqual(
      published.differences(published.read_folder(back), self.made), []
    )

  def test_auto_map_is_said_to_be_ignored(self):
    self.write(auto_map={'AutoModel': 'x.Y'})
    run = short_runs.seekax(
      'convert',
      f'--source={self.source}',
      f'--target={self.target}',
      '--format=huggingface',
      '--mtp=drop',
      '--dtype=float32',
    )
    self.assertEqual(run.returncode, 0, msg=run.stderr)
    said = [line for line in run.stderr.splitlines() if 'auto_map' in line]
    self.assertLen(said, 1)
    self.assertIn('is ignored', said[0])
    found = json.loads((self.target / 'config.json').read_text())
    self.assertNotIn('auto_map', found)
    self.assertEqual(found['torch_dtype'], 'float32')
    self.assertEqual(found['num_nextn_predict_layers'], 0)

  def test_inspect_counts_what_is_there(self):
    model = dataclasses.replace(MODEL, embed_dim=160, expert_dim=136)
    made = published.tensors(model, 'F8_E4M3')
    shutil.rmtree(self.source)
    published.write_folder(self.source, published.fields(model, made), made, 3)
    path = self.root / 'about.json'
    code, out, err = call(
      'inspect', str(self.source), '--verify', f'--json={path}'
    )
    self.assertEqual(code, 0, msg=err)
    about = json.loads(path.read_text())
    self.assertEqual(about['tensors'], len(made))
    self.assertEqual(about['bytes'], sum(v.nbytes for v in made.values()))
    weights = {k: v for k, v in made.items() if not k.endswith('_scale_inv')}
    self.assertEqual(about['values'], sum(v.size for v in weights.values()))
    self.assertEqual(about['shards'], 3)
    self.assertEqual(about['architecture'], 'DeepseekV3ForCausalLM')
    self.assertEqual(
      (about['missing'], about['unexpected'], about['wrong']), ([], [], [])
    )
    self.assertTrue(about['verified'])
    self.assertIn('verified: True', out)

  def test_inspect_lists_what_is_wrong_without_verify(self):
    name = 'model.norm.weight'
    del self.made[name]
    self.made['x'] = np.zeros(1, np.float32)
    self.write()
    path = self.root / 'about.json'
    code, _, err = call('inspect', str(self.source), f'--json={path}')
    self.assertEqual(code, 0, msg=err)
    about = json.loads(path.read_text())
    self.assertEqual((about['missing'], about['unexpected']), ([name], ['x']))

  def test_inspect_finds_a_flipped_bit_of_a_workdir(self):
    self.convert()
    code, _, err = call('inspect', str(self.target), '--verify')
    self.assertEqual(code, 0, msg=err)
    path = self.target / 'weights' / 'model.safetensors'
    broken = bytearray(path.read_bytes())
    for at in (-3, len(broken) // 2):  # The first lies in a copied table.
      flipped = broken.copy()
      flipped[at] ^= 16
      path.write_bytes(flipped)
      code, _, err = call('inspect', str(self.target), '--verify')
      self.assertEqual(code, 2)
      self.assertIn('model.safetensors does not match its SHA-256', err)

  def test_scores_agree_before_and_after(self):
    self.convert()
    tokens = np.random.default_rng(0).integers(0, 300, (2, 9))
    np.save(self.root / 'tokens.npy', tokens)
    logits = {}
    for path in (self.source, self.target):
      out = self.root / 'logits.npy'
      code, text, err = call(
        'score',
        f'--checkpoint={path}',
        f'--tokens={self.root}/tokens.npy',
        f'--logits_out={out}',
      )
      self.assertEqual(code, 0, msg=err)
      self.assertEqual(json.loads(text.splitlines()[-1])['tokens'], 16)
      logits[path] = np.load(out)
    self.assertEqual(logits[self.source].shape, (2, 9, 300))
    np.testing.assert_array_equal(logits[self.source], logits[self.target])


if __name__ == '__main__':
  absltest.main()
