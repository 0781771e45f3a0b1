"""Laws of the contents: every text once, on one side."""

import dataclasses
import hashlib
import json
import pathlib
import tempfile

from absl.testing import absltest, parameterized
import numpy as np

from seekax.configuration.data import DataConfig
from seekax.data import contents, shard_writer, sources, tokenizer_training
from seekax.data.reading_rules import DataError, Document

_TEXTS = [f'text {n}\n' for n in range(60)]


class ContentsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.folder = pathlib.Path(folder)
    (cls.folder / 'files').mkdir()
    for n, text in enumerate(_TEXTS[:40]):
      (cls.folder / 'files' / f'{n}.txt').write_text(text)
    # Half of the files' texts once more, and others.
    lines = [json.dumps({'text': text}) for text in _TEXTS[20:]]
    (cls.folder / 'lines.jsonl').write_text('\n'.join(lines))
    cls.tokenizer = tokenizer_training.train(_TEXTS, 280)
    cls.tokenizer.save(cls.folder / 'tokenizer.json')
    shard_writer.tokenize(
      str(cls.folder / 'lines.jsonl'),
      str(cls.folder / 'tokenizer.json'),
      str(cls.folder / 'tokens'),
      workers=1,
      shard_documents=15,
    )

  def read(self, source: str) -> list[contents.Contents]:
    config = DataConfig(
      source=source.format(self.folder), heldout_fraction=0.25
    )
    return contents.read(config)

  def sides(self, parts) -> tuple[list[str], list[str]]:
    """The texts to train on and those held out."""
    train = [
      self.tokenizer.decode(documents.read(n)[1:-1])
      for documents in (part.training(self.tokenizer) for part in parts)
      for n in range(len(documents.lengths))
    ]
    held = [
      entry.document.text
      for part in parts
      for entry in part.heldout(self.tokenizer, skip_corrupt=False)
    ]
    return train, held

  @parameterized.parameters(
    '0.6*{0}/files,0.4*{0}/lines.jsonl',
    '0.6*{0}/files,0.4*{0}/tokens',
    '{0}/files,{0}/tokens',
  )
  def test_every_text_is_there_and_on_one_side(self, source):
    parts = self.read(source)
    train, held = self.sides(parts)
    self.assertCountEqual(train + held, _TEXTS[:40] + _TEXTS[20:])
    self.assertEmpty(set(train) & set(held))
    # Copies stand on both sides of the cut between the sources.
    self.assertLess(len(set(train)), len(train))
    self.assertLess(len(set(held)), len(held))
    self.assertEqual(sum(p.train_documents() for p in parts), len(train))
    self.assertEqual(
      sum(part.train_bytes() for part in parts), sum(map(len, train))
    )

  def test_a_document_of_a_folder_is_on_the_side_of_its_text(self):
    as_text = self.sides(self.read('{0}/lines.jsonl'))
    as_tokens = self.sides(self.read('{0}/tokens'))
    for one, other in zip(as_tokens, as_text, strict=True):
      self.assertCountEqual(one, other)

  def test_an_only_text_is_cut_by_lines(self):
    path = self.folder / 'book.txt'
    path.write_text(''.join(_TEXTS))
    (part,) = self.read('{0}/book.txt')
    train, held = self.sides([part])
    self.assertEqual(train[0] + held[0], ''.join(_TEXTS))

  def test_the_library_is_split_by_name(self):
    config = DataConfig(source='stdlib', heldout_fraction=0.04)
    (part,) = contents.read(config)
    held = {document.name for document in part.heldout_texts}
    by_name = {
      document.name
      for document in sources.read_documents('stdlib')
      if int(sources.sha256(document.name)[:16], 16) < 0.04 * 2**64
    }
    # Copies of a text go with the first of them.
    self.assertContainsSubset(
      by_name,
      held
      | {
        d.name
        for d in part.train_texts
        if sum(d.text == e.text for e in part.train_texts) > 1
      },
    )
    self.assertNotEmpty(held & by_name)

  def test_a_source_left_without_documents_is_named(self):
    held = self.sides(self.read('{0}/files'))[1]
    (self.folder / 'one.txt').write_text(held[0])
    with self.assertRaisesRegex(DataError, 'every document of .*one.txt'):
      self.read('0.5*{0}/files,0.5*{0}/one.txt')

  def test_identity_changes_with_a_folder(self):
    _, tokens = self.read('0.6*{0}/files,0.4*{0}/tokens')
    manifest = (self.folder / 'tokens' / 'manifest.json').read_bytes()
    self.assertEqual(
      tokens.identity(), [0.4, 0, [hashlib.sha256(manifest).hexdigest()]]
    )
    heavier = dataclasses.replace(
      tokens, source=dataclasses.replace(tokens.source, weight=0.5)
    )
    self.assertNotEqual(heavier.identity(), tokens.identity())


class TokenizeTest(absltest.TestCase):
  def test_documents_are_framed_and_come_back(self):
    documents = [
      Document('a', 'one <|eos|>'),
      Document('b', ''),
    ]
    tokenizer = tokenizer_training.train(['one'], 260)
    one, empty = contents.tokenize(documents, tokenizer)
    self.assertEqual((one[0], one[-1]), (tokenizer.bos_id, tokenizer.eos_id))
    self.assertEqual(tokenizer.decode(one[1:-1]), 'one <|eos|>')
    self.assertNotIn(tokenizer.eos_id, one[1:-1])
    np.testing.assert_array_equal(empty, [tokenizer.bos_id, tokenizer.eos_id])


if __name__ == '__main__':
  absltest.main()
