"""Laws of the split: no text on both sides, none moves across."""

import random
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np

from seekax.data import split
from seekax.data.reading_rules import DataError, Document


def heldout(documents, fraction, keys=split.content_keys) -> set[str]:
  held = split.choose_heldout(keys(documents), fraction)
  return {d.name for d, out in zip(documents, held, strict=True) if out}


class SplitTest(parameterized.TestCase):
  documents = tuple(Document(f'{n}.txt', f'text {n % 150}') for n in range(200))

  @parameterized.parameters(split.content_keys, split.name_keys)
  def test_about_the_fraction_is_held_out(self, keys):
    self.assertBetween(len(heldout(self.documents, 0.1, keys)), 8, 32)

  @parameterized.parameters(split.content_keys, split.name_keys)
  def test_no_text_is_on_both_sides(self, keys):
    held = heldout(self.documents, 0.3, keys)
    texts = [{d.text for d in self.documents if d.name in held}]
    texts.append({d.text for d in self.documents if d.name not in held})
    self.assertNotEmpty(texts[0])
    self.assertEmpty(texts[0] & texts[1])
    # The law would hold by itself if no text stood twice.
    twice = {d.text for d in self.documents[150:]}
    self.assertNotEmpty(texts[0] & twice)

  def test_content_alone_decides(self):
    renamed = [Document(f'new {d.name}', d.text) for d in self.documents[::-2]]
    expected = {f'new {name}' for name in heldout(self.documents, 0.1)}
    names = {d.name for d in renamed}
    self.assertEqual(heldout(renamed, 0.1), expected & names)

  def test_name_alone_decides_by_name(self):
    distinct = self.documents[:150]
    changed = [Document(d.name, f'new {d.text}') for d in distinct[::-2]]
    expected = heldout(distinct, 0.1, split.name_keys)
    names = {d.name for d in changed}
    self.assertEqual(heldout(changed, 0.1, split.name_keys), expected & names)

  @parameterized.parameters(split.content_keys, split.name_keys)
  def test_larger_fraction_holds_out_more(self, keys):
    few = heldout(self.documents, 0.05, keys)
    self.assertContainsSubset(few, heldout(self.documents, 0.2, keys))

  def test_file_name_that_is_not_utf8_can_be_split(self):
    documents = [*self.documents, Document('\udcff', 'x')]
    self.assertLen(split.name_keys(documents), 201)

  @parameterized.parameters(('none', 1e-9), ('all', 1 - 1e-9))
  def test_empty_side_is_an_error_whose_fix_works(self, bound, fraction):
    keys = split.content_keys(self.documents)
    with self.assertRaisesRegex(
      DataError, f'holds out {bound}.* 200 documents'
    ) as caught:
      split.choose_heldout(keys, fraction)
    fix = float(str(caught.exception).split(' it to ')[1].split()[0])
    held = split.choose_heldout(keys, fix)
    self.assertTrue(held.any())
    self.assertFalse(held.all())

  def test_no_documents_are_an_error(self):
    with self.assertRaisesRegex(DataError, 'none of 0 documents'):
      split.choose_heldout(np.zeros(0, np.uint64), 0.5)


class OnlyDocumentTest(parameterized.TestCase):
  @parameterized.parameters((100, 0.04, 4), (3, 0.04, 1), (2, 0.5, 1))
  def test_single_document_loses_its_last_lines(self, lines, fraction, held):
    text = ''.join(f'{n}\n' for n in range(lines))
    train, heldout = split.split_lines(Document('book', text), fraction)
    self.assertEqual(train.text + heldout.text, text)
    self.assertLen(heldout.text.splitlines(), held)
    self.assertNotEqual(train.name, heldout.name)

  def test_lines_are_those_of_the_whole_text(self):
    rng = random.Random(0)
    ends = ('\n', '\r\n', '\r', '\v', '\u2028', '\x1c', 'x', '')
    for _ in range(300):
      text = 'a\nb' + ''.join(
        'line' + rng.choice(ends) for _ in range(rng.randrange(30))
      )
      lines = text.splitlines(keepends=True)
      held = -(-len(lines) // 3)
      with mock.patch.object(split, '_BLOCK_CHARACTERS', 20):
        train, heldout = split.split_lines(Document('a', text), 1 / 3)
      self.assertEqual(train.text, ''.join(lines[:-held]))
      self.assertEqual(heldout.text, ''.join(lines[-held:]))

  def test_a_conversation_is_not_cut(self):
    document = Document('a', 'x\ny\n', 'x\ny\n', '\ufdd0')
    with self.assertRaisesRegex(DataError, 'a conversation, which can not be'):
      split.split_lines(document, 0.5)

  @parameterized.parameters(('one line', 0.04), ('two\nlines', 0.9))
  def test_single_document_without_enough_lines_is_an_error(self, text, share):
    with self.assertRaisesRegex(DataError, 'book is the only document'):
      split.split_lines(Document('book', text), share)


if __name__ == '__main__':
  absltest.main()
