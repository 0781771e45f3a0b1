import dataclasses
import pathlib

from absl.testing import absltest

import runs
from seekax.config import ConfigError
from seekax.training import corpus as corpus_lib


class CorpusTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    root = pathlib.Path(absltest.FLAGS.test_tmpdir) / cls.__name__
    cls.source = runs.write_corpus(root / 'corpus')
    cls.config = runs.small_config(cls.source)
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


if __name__ == '__main__':
  absltest.main()
