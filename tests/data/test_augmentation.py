"""Laws of augmentation: its chance is a function of seed, document, epoch."""

import dataclasses

from absl.testing import absltest, parameterized
import numpy as np

from seekax.configuration.data import DataConfig
from seekax.configuration.errors import ConfigError
from seekax.data import tokenizer as tokenizer_lib
from seekax.data import tokenizer_training
from seekax.data.augmentation import Augmentation
from seekax.data.documents import frame
from seekax.data.reading_rules import DataError

_TEXT = 'if x:\n  f(x)\n  g(y);\nelse:\n  h("a", 1)\n'


class AugmentationTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.tokenizer = tokenizer_training.train(
      [_TEXT] * 9, 320, tokenizer_lib.FIM
    )
    cls.framed = frame(cls.tokenizer.encode(_TEXT), 0, 1)

  def augmented(self, key, is_whole=True, **changes) -> tuple[int, ...]:
    config = DataConfig(**changes)
    augment = Augmentation(self.tokenizer, config)
    return tuple(augment(self.framed, is_whole, *key).tolist())

  def is_rearranged(self, tokens) -> bool:
    return tokens[1] == self.tokenizer.fim_ids[0]

  def test_switched_off_it_changes_nothing(self):
    self.assertEqual(self.augmented((0, 5, 0, 0)), tuple(self.framed.tolist()))

  @parameterized.parameters('fim_rate', 'split_punctuation_rate')
  def test_it_is_a_pure_function_of_seed_document_and_epoch(self, key):
    place = (1, 2, 0, 3)
    here = self.augmented(place, **{key: 0.5})
    self.assertEqual(here, self.augmented(place, **{key: 0.5}))
    for part in range(4):
      others = {
        self.augmented((*place[:part], n, *place[part + 1 :]), **{key: 0.5})
        for n in range(20)
      }
      self.assertGreater(len(others), 1, msg=part)
    seeds = {self.augmented(place, **{key: 0.5, 'seed': n}) for n in range(20)}
    self.assertGreater(len(seeds), 1)

  def test_the_rate_is_the_share_of_documents(self):
    augment = Augmentation(self.tokenizer, DataConfig(fim_rate=0.1))
    rearranged = [
      self.is_rearranged(augment(self.framed, True, 0, n, 0, 0))
      for n in range(3000)
    ]
    # Five standard deviations.
    self.assertAlmostEqual(np.mean(rearranged), 0.1, delta=0.028)

  def test_the_rate_is_the_share_of_merged_tokens(self):
    plain = self.augmented((0, 0, 0, 0))
    added = [
      len(self.augmented((0, n, 0, 0), split_punctuation_rate=0.25))
      - len(plain)
      for n in range(600)
    ]
    whole = len(self.augmented((0, 0, 0, 0), split_punctuation_rate=1.0))
    self.assertGreater(whole, len(plain))
    self.assertAlmostEqual(
      np.mean(added) / (whole - len(plain)), 0.25, delta=0.06
    )

  def test_a_part_of_a_document_is_never_rearranged(self):
    place = (0, 0, 0, 0)
    self.assertTrue(self.is_rearranged(self.augmented(place, fim_rate=1.0)))
    self.assertFalse(
      self.is_rearranged(self.augmented(place, False, fim_rate=1.0))
    )

  def test_both_together_keep_the_text(self):
    tokens = self.augmented(
      (0, 0, 0, 0), fim_rate=1.0, split_punctuation_rate=1.0
    )
    begin, hole, end = (tokens.index(i) for i in self.tokenizer.fim_ids)
    prefix, suffix, middle = (
      self.tokenizer.decode(tokens[a:b])
      for a, b in ((begin, hole), (hole, end), (end, len(tokens)))
    )
    self.assertEqual(prefix + middle + suffix, _TEXT)

  def test_chance_is_the_same_on_every_machine(self):
    tokens = self.augmented((0, 5, 0, 1), fim_rate=1.0)
    begin, hole, end = (tokens.index(i) for i in self.tokenizer.fim_ids)
    prefix = self.tokenizer.decode(tokens[begin:hole])
    middle = self.tokenizer.decode(tokens[end:])
    # Other numbers would change what running trainings go on with.
    self.assertEqual((len(prefix), len(middle)), (5, 8))

  def test_a_tokenizer_without_the_tokens_is_refused(self):
    plain = tokenizer_training.train([_TEXT], 300)
    Augmentation(plain, DataConfig(split_punctuation_rate=0.5))
    with self.assertRaisesRegex(DataError, 'no fill-in-the-middle tokens'):
      Augmentation(plain, DataConfig(fim_rate=0.1))

  @parameterized.parameters('fim_rate', 'split_punctuation_rate')
  def test_a_rate_is_a_share(self, key):
    for value in (-0.1, 1.5, float('nan')):
      with self.assertRaisesRegex(ConfigError, f'data.{key}={value}'):
        dataclasses.replace(DataConfig(), **{key: value})


if __name__ == '__main__':
  absltest.main()
