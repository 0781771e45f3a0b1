import dataclasses
import json
import pathlib
import shutil

from absl.testing import absltest
import numpy as np

from seekax.configuration.errors import ConfigError
from seekax.data import shard_writer, split, tokenizer_training
from seekax.data import tokenizer as tokenizer_lib
from seekax.data.reading_rules import DataError
from seekax.data.shards import TokenFolder
from seekax.runs import corpus as corpus_lib
import short_runs


class CorpusTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    root = pathlib.Path(absltest.FLAGS.test_tmpdir) / cls.__name__
    cls.source = short_runs.write_corpus(root / 'corpus')
    cls.config = short_runs.small_config(cls.source)
    cls.corpus = corpus_lib.load(cls.config, None)

  def test_training_and_held_out_bytes_are_the_whole_source(self):
    total = sum(path.stat().st_size for path in self.source.iterdir())
    corpus = self.corpus
    self.assertEqual(corpus.train_bytes + sum(corpus.heldout_bytes), total)
    self.assertLen(corpus.heldout, 24 - corpus.train_documents)

  def test_an_evaluation_takes_whole_documents_up_to_its_bytes(self):
    corpus = self.corpus
    everything = list(range(len(corpus.heldout)))
    self.assertEqual(corpus.evaluated(0), everything)
    self.assertEqual(corpus.evaluated(10**9), everything)
    self.assertEqual(corpus.evaluated(1), [0])
    first_two = sum(corpus.heldout_bytes[:2])
    self.assertEqual(corpus.evaluated(first_two), [0, 1])
    self.assertEqual(corpus.evaluated(first_two - 1), [0])

  def test_held_out_text_is_part_of_the_fingerprint(self):
    config = dataclasses.replace(
      self.config,
      data=dataclasses.replace(self.config.data, heldout_fraction=0.3),
    )
    other = corpus_lib.load(config, None)
    self.assertEqual(
      corpus_lib.load(self.config, None).fingerprint, self.corpus.fingerprint
    )
    self.assertNotEqual(other.fingerprint, self.corpus.fingerprint)

  def test_a_workdir_inside_the_source_changes_nothing(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    config = short_runs.small_config(short_runs.write_corpus(folder))
    before = corpus_lib.load(config, None)
    (folder / 'run').mkdir()
    run = {'config': {'model': {}}, 'command': ''}
    (folder / 'run' / 'run.json').write_text(json.dumps(run))
    before.tokenizer.save(folder / 'run' / 'tokenizer.json')
    with self.assertLogs(level='WARNING') as logs:
      after = corpus_lib.load(config, before.tokenizer)
    self.assertIn("the workdir of a run (1): 'run'", logs.output[0])
    self.assertEqual(after.fingerprint, before.fingerprint)

  def test_a_tokenizer_larger_than_the_vocabulary_is_refused(self):
    path = pathlib.Path(self.create_tempdir().full_path) / 'tokenizer.json'
    self.corpus.tokenizer.save(path)
    config = dataclasses.replace(
      self.config,
      model=dataclasses.replace(self.config.model, vocab_size=300),
      data=dataclasses.replace(self.config.data, tokenizer=str(path)),
    )
    with self.assertRaisesRegex(ConfigError, 'model.vocab_size is 300'):
      corpus_lib.load(config, None)


class ConversationTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    texts = [f'question {n} ' * 20 for n in range(60)]
    self.tokenizer = tokenizer_training.train(texts, 300)
    self.tokenizer.save(self.folder / 'tokenizer.json')
    talks = [[{'role': 'user', 'content': text}] for text in texts]
    lines = [json.dumps({'messages': talk}) for talk in talks]
    (self.folder / 'a.jsonl').write_text('\n'.join(lines))
    self.config = short_runs.small_config(self.folder / 'a.jsonl')

  def config_with(self, **data):
    path = str(self.folder / 'tokenizer.json')
    data = dataclasses.replace(self.config.data, tokenizer=path, **data)
    return dataclasses.replace(self.config, data=data)

  def test_without_a_template_they_are_plain_text(self):
    with self.assertLogs(level='WARNING') as logs:
      corpus = corpus_lib.load(self.config, None)
    self.assertIn('60 rows', logs.output[0])
    self.assertIn('there is no chat template', logs.output[0])
    text = corpus.tokenizer.decode(corpus.heldout[0])
    self.assertStartsWith(text, 'user: question ')

  def test_the_template_beside_the_tokenizer_renders_them(self):
    (self.folder / 'chat_template.jinja').write_text(
      '{{ bos_token }}{{ messages[0].content }}{{ eos_token }}>'
    )
    corpus = corpus_lib.load(self.config_with(), None)
    self.assertEqual(corpus.heldout[0].tolist().count(0), 1)
    self.assertEqual(corpus.heldout[0].tolist().count(1), 2)
    with self.assertRaisesRegex(DataError, 'set data.fim_rate=0'):
      corpus_lib.load(self.config_with(fim_rate=0.1), None)


class MixtureTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(absltest.FLAGS.test_tmpdir) / cls.__name__
    # 24 documents as files, and the same and others as lines.
    files = short_runs.write_corpus(cls.folder / 'files')
    texts = [path.read_text() for path in sorted(files.iterdir())]
    others = [f'words of text {n} ' * 30 for n in range(40)]
    lines = [json.dumps({'text': text}) for text in texts[::2] + others]
    (cls.folder / 'lines.jsonl').write_text('\n'.join(lines))
    cls.tokenizer = tokenizer_training.train(texts, 300)
    cls.tokenizer.save(cls.folder / 'tokenizer.json')
    shard_writer.tokenize(
      str(cls.folder / 'lines.jsonl'),
      str(cls.folder / 'tokenizer.json'),
      str(cls.folder / 'tokens'),
      workers=1,
      shard_documents=20,
    )
    cls.base = short_runs.small_config(files)

  def config(self, source: str, **data):
    source = source.format(self.folder)
    data = dataclasses.replace(self.base.data, source=source, **data)
    return dataclasses.replace(self.base, data=data)

  def test_tokens_train_as_their_text_does(self):
    as_text = corpus_lib.load(
      self.config(
        '{0}/lines.jsonl', tokenizer=str(self.folder / 'tokenizer.json')
      )
    )
    as_tokens = corpus_lib.load(self.config('{0}/tokens'))
    self.assertEqual(as_tokens.tokenizer.to_json(), self.tokenizer.to_json())
    for name in ('train_documents', 'train_bytes', 'train_tokens'):
      self.assertEqual(getattr(as_tokens, name), getattr(as_text, name))
    self.assertEqual(as_tokens.compression, as_text.compression)
    self.assertCountEqual(
      [document.tolist() for document in as_tokens.heldout],
      [document.tolist() for document in as_text.heldout],
    )
    self.assertNotEqual(as_tokens.fingerprint, as_text.fingerprint)

  def test_going_on_is_exact_with_everything_switched_on(self):
    texts = [p.read_text() for p in sorted((self.folder / 'files').iterdir())]
    tokenizer = tokenizer_training.train(texts, 310, tokenizer_lib.FIM)
    config = self.config(
      '0.6*{0}/files,0.4*{0}/lines.jsonl',
      fim_rate=0.9,
      split_punctuation_rate=0.3,
    )
    batches = corpus_lib.load(config, tokenizer).batches
    marked = 0
    for _ in range(25):
      tokens_BL = np.asarray(next(batches).tokens_BL)
      marked += np.count_nonzero(tokens_BL == tokenizer.fim_ids[1])
    self.assertGreater(marked, 5)
    state = json.dumps(batches.get_state())
    other = corpus_lib.load(config, tokenizer).batches
    other.set_state(json.loads(state))
    for _ in range(10):
      np.testing.assert_array_equal(
        next(other).tokens_BL, next(batches).tokens_BL
      )

  def test_fingerprints_differ_with_weights_and_features(self):
    sources = (
      '0.6*{0}/files,0.4*{0}/lines.jsonl',
      '0.5*{0}/files,0.5*{0}/lines.jsonl',
      '{0}/files,{0}/lines.jsonl',
      '{0}/tokens',
    )
    prints = {
      corpus_lib.load(self.config(source), self.tokenizer).fingerprint
      for source in sources
    }
    self.assertLen(prints, 4)

  def test_processes_load_their_own_part(self):
    config = self.config('{0}/tokens')
    whole = next(corpus_lib.load(config).batches)
    parts = [
      next(corpus_lib.load(config, process=p, num_processes=2).batches)
      for p in range(2)
    ]
    self.assertEqual(config.data.num_shards % 2, 0)
    for process, part in enumerate(parts):
      np.testing.assert_array_equal(part.tokens_BL, whole.tokens_BL[process::2])

  def test_our_own_tokenizer_gets_the_tokens_of_infilling_when_asked(self):
    plain = corpus_lib.load(self.config('{0}/files')).tokenizer
    self.assertEmpty(plain.fim_ids)
    other = corpus_lib.load(self.config('{0}/files', fim_rate=0.1)).tokenizer
    self.assertLen(other.fim_ids, 3)

  def test_a_tokenizer_without_those_is_refused(self):
    with self.assertRaisesRegex(DataError, 'set data.fim_rate=0'):
      corpus_lib.load(self.config('{0}/tokens', fim_rate=0.1))

  def test_tokens_of_another_tokenizer_are_refused(self):
    other = tokenizer_training.train(['other words'], 280)
    with self.assertRaisesRegex(DataError, 'written with another tokenizer'):
      corpus_lib.load(self.config('{0}/tokens'), other)

  def test_ids_above_the_vocabulary_are_refused(self):
    config = self.config('{0}/tokens')
    config = dataclasses.replace(
      config, model=dataclasses.replace(config.model, vocab_size=270)
    )
    with self.assertRaisesRegex(ConfigError, 'model.vocab_size is 270'):
      corpus_lib.load(config)

  def test_corrupt_held_out_records_are_skipped_only_when_asked(self):
    torn = self.folder / 'torn'
    shutil.copytree(self.folder / 'tokens', torn)
    folder = TokenFolder(str(torn), '')
    held = split.choose_heldout(folder.keys, self.base.data.heldout_fraction)
    number = int(np.flatnonzero(held)[0])
    content = folder.read(number).astype('<u2').tobytes()
    name = folder.name(number).split(':')[0]
    path = torn / f'{name}.array_record'
    data = bytearray(path.read_bytes())
    data[data.index(content)] ^= 1
    path.write_bytes(data)
    with self.assertRaisesRegex(DataError, 'is corrupt'):
      corpus_lib.load(self.config('{0}/torn'))
    with self.assertLogs('seekax.data.contents', 'WARNING') as logs:
      corpus = corpus_lib.load(self.config('{0}/torn', skip_corrupt=True))
    self.assertLen(logs.output, 1)
    self.assertLen(corpus.heldout, held.sum() - 1)


if __name__ == '__main__':
  absltest.main()
