"""Laws of the pipeline: order belongs to the run, its position is exact."""

import collections
import dataclasses
import hashlib
import json
from typing import Any

from absl.testing import absltest, parameterized
import jax
import numpy as np

from seekax.configuration.data import DataConfig
from seekax.data import pipeline, sources, tokenizer_training
from seekax.data.documents import frame, InMemory, Pieces

_CONFIG = DataConfig(sequence_length=7, batch_size=8, num_shards=4)
_BOS, _EOS = 0, 1


def _documents(num_documents: int = 30, longest: int = 40) -> list[np.ndarray]:
  """Framed documents in which no token but BOS and EOS stands twice."""
  rng = np.random.default_rng(1)
  ends = 2 + np.cumsum(rng.integers(1, longest, num_documents))
  starts = [2, *ends[:-1]]
  return [
    frame(np.arange(start, end), _BOS, _EOS)
    for start, end in zip(starts, ends, strict=True)
  ]


def _config(**changes) -> DataConfig:
  return dataclasses.replace(_CONFIG, **changes)


def _take(iterator, count: int) -> list[pipeline.Batch]:
  return [next(iterator) for _ in range(count)]


def _assert_equal(batch: pipeline.Batch, other: pipeline.Batch) -> None:
  jax.tree.map(np.testing.assert_array_equal, batch, other)


class _Whole(Pieces):
  """Documents that are not cut, whatever the number of shards."""

  def __init__(self, documents):
    super().__init__(InMemory(documents), num_shards=1)


def _unchanged(tokens, *_):
  return tokens


def _rows(pieces: Pieces, config: DataConfig, shard: int):
  return iter(pipeline.shard_rows([pieces], [1.0], config, _unchanged, shard))


def _tokens(batches, row: slice = slice(None)) -> np.ndarray:
  """All tokens of the rows, batch by batch: inputs and the last target."""
  return np.concatenate(
    [
      np.concatenate([b.tokens_BL, b.targets_BL[:, -1:]], axis=1)[row].ravel()
      for b in batches
    ]
  )


class BatchTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_batch_is_int32_of_one_shape(self, isolate):
    batch = next(
      pipeline.batches(_documents(), _config(isolate_documents=isolate))
    )
    for array in jax.tree.leaves(batch):
      self.assertEqual(array.shape, (8, 7))
      self.assertEqual(array.dtype, np.int32)

  @parameterized.parameters(False, True)
  def test_targets_and_their_segments_are_shifted_by_one(self, isolate):
    config = _config(isolate_documents=isolate)
    for batch in _take(pipeline.batches(_documents(), config), 20):
      np.testing.assert_array_equal(
        batch.targets_BL[:, :-1], batch.tokens_BL[:, 1:]
      )
      np.testing.assert_array_equal(
        batch.target_segments_BL[:, :-1], batch.segments_BL[:, 1:]
      )

  def test_segment_changes_from_input_to_target_where_a_document_ends(self):
    for batch in _take(pipeline.batches(_documents(), _CONFIG), 20):
      np.testing.assert_array_equal(
        batch.segments_BL != batch.target_segments_BL, batch.tokens_BL == _EOS
      )

  def test_positions_run_on_by_default(self):
    for batch in _take(pipeline.batches(_documents(), _CONFIG), 5):
      np.testing.assert_array_equal(batch.positions_BL, [range(7)] * 8)

  def test_positions_restart_with_every_isolated_document(self):
    config = _config(isolate_documents=True)
    for batch in _take(pipeline.batches(_documents(longest=6), config), 20):
      for tokens, positions in zip(
        batch.tokens_BL, batch.positions_BL, strict=True
      ):
        expected = 0
        for token, position in zip(tokens, positions, strict=True):
          expected = 0 if token == _BOS else expected
          self.assertEqual(position, expected)
          expected += 1

  def test_isolation_changes_positions_alone(self):
    plain = pipeline.batches(_documents(), _CONFIG)
    isolated = pipeline.batches(_documents(), _config(isolate_documents=True))
    for one, other in zip(_take(plain, 9), _take(isolated, 9), strict=True):
      _assert_equal(
        one, dataclasses.replace(other, positions_BL=one.positions_BL)
      )


class OrderTest(parameterized.TestCase):
  def test_an_epoch_holds_every_token_once(self):
    documents = _documents()
    config = _config(num_shards=1, batch_size=1)
    stream = _tokens(_take(pipeline.batches(documents, config), 1000))
    num_tokens = sum(map(len, documents))
    everything = sorted(np.concatenate(documents))
    epochs = [stream[n * num_tokens :][:num_tokens] for n in range(3)]
    for epoch in epochs:
      np.testing.assert_array_equal(np.sort(epoch), everything)
    self.assertFalse(np.array_equal(epochs[0], epochs[1]))
    self.assertFalse(np.array_equal(epochs[1], epochs[2]))

  def test_shards_share_out_one_global_order(self):
    documents = _documents()
    first_token = {int(document[1]): n for n, document in enumerate(documents)}

    def order(shard: int, num_shards: int, count: int) -> list[int]:
      config = _config(num_shards=num_shards)
      rows = _rows(_Whole(documents), config, shard)
      stream = np.concatenate([next(rows).tokens_R for _ in range(400)])
      starts = [first_token[t] for t in stream.tolist() if t in first_token]
      return starts[:count]

    whole = order(0, 1, 80)
    self.assertEqual(set(collections.Counter(whole[:60]).values()), {2})
    for shard in range(4):
      self.assertEqual(order(shard, 4, 20), whole[shard::4])

  def test_rows_of_shards_are_independent_of_reader(self):
    documents = _documents()
    batches = _take(pipeline.batches(documents, _CONFIG), 20)
    pieces = Pieces(InMemory(documents), _CONFIG.num_shards)
    for shard in range(4):
      rows = _rows(pieces, _CONFIG, shard)
      alone = np.concatenate([next(rows).tokens_R for _ in range(2 * 20)])
      np.testing.assert_array_equal(
        alone, _tokens(batches, slice(shard, None, 4))
      )

  def test_batch_size_cuts_the_same_streams_elsewhere(self):
    small = pipeline.batches(_documents(), _config(batch_size=4))
    large = pipeline.batches(_documents(), _config(batch_size=16))
    np.testing.assert_array_equal(
      _tokens(_take(small, 20)), _tokens(_take(large, 5))
    )

  @parameterized.parameters(1, -1, 2**32, 2**70)
  def test_any_seed_gives_an_order_of_its_own(self, seed):
    ours = _tokens(_take(pipeline.batches(_documents(), _config(seed=seed)), 9))
    zero = _tokens(_take(pipeline.batches(_documents(), _CONFIG), 9))
    self.assertFalse(np.array_equal(ours, zero))

  def test_next_seed_is_not_the_next_epoch(self):
    documents = _documents()
    num_tokens = sum(map(len, documents))
    config = _config(num_shards=1, batch_size=1)
    zero = _tokens(_take(pipeline.batches(documents, config), 300))
    config = dataclasses.replace(config, seed=1)
    one = _tokens(_take(pipeline.batches(documents, config), 300))
    self.assertFalse(
      np.array_equal(zero[num_tokens : 2 * num_tokens], one[:num_tokens])
    )

  @parameterized.parameters(1, 2, 3)
  def test_fewer_documents_than_shards_are_cut_and_all_read(self, count):
    documents = _documents(count, longest=300)
    batches = _take(pipeline.batches(documents, _CONFIG), 40)
    for shard in range(4):
      self.assertNotEmpty(_tokens(batches, slice(shard, None, 4)))
    # Pieces differ between shards: no batch holds a row twice in a row.
    self.assertLen({row.tobytes() for row in batches[0].tokens_BL}, 8)
    self.assertEqual(
      set(_tokens(batches).tolist()), set(np.concatenate(documents).tolist())
    )

  def test_one_document_and_one_shard_work(self):
    config = _config(num_shards=1, batch_size=1)
    document = frame(np.arange(2, 8), _BOS, _EOS)
    batches = _take(pipeline.batches([document], config), 3)
    np.testing.assert_array_equal(_tokens(batches), np.tile(document, 3))

  def test_too_little_text_is_an_error_with_both_numbers(self):
    documents = [frame(np.arange(2, 63), _BOS, _EOS)]
    with self.assertRaisesRegex(
      sources.DataError, 'has 63 tokens, one batch takes 64 .*; lower'
    ):
      pipeline.batches(documents, _CONFIG)
    with self.assertRaisesRegex(sources.DataError, 'has 0 tokens'):
      pipeline.batches([], _CONFIG)
    next(pipeline.batches([np.append(documents[0], _EOS)], _CONFIG))


class StateTest(parameterized.TestCase):
  @parameterized.parameters(0, 1, 2, 7, 40, 200)
  def test_state_restores_exact_next_batch_with_nonempty_buffer(self, start):
    iterator = pipeline.batches(_documents(), _CONFIG)
    _take(iterator, start)
    state = json.dumps(iterator.get_state())
    expected = _take(iterator, 10)
    fresh = pipeline.batches(_documents(), _CONFIG)
    for other in (fresh, iterator):
      other.set_state(json.loads(state))
      self.assertEqual(json.dumps(other.get_state()), state)
      for batch, other_batch in zip(expected, _take(other, 10), strict=True):
        _assert_equal(batch, other_batch)
    if start:
      shards = json.loads(state)['shards'].values()
      offsets = [shard['offset'] for shard in shards]
      self.assertTrue(any(offsets))

  def test_state_does_not_run_ahead_nor_change_afterwards(self):
    iterator = pipeline.batches(_documents(), _CONFIG)
    first = iterator.get_state()
    next(iterator)
    second, text = iterator.get_state(), json.dumps(iterator.get_state())
    self.assertNotEqual(first, second)
    self.assertEqual(second, iterator.get_state())
    _take(iterator, 5)
    self.assertEqual(json.dumps(second), text)

  def test_state_of_a_shard_is_independent_of_the_others(self):
    iterator = pipeline.batches(_documents(), _CONFIG)
    _take(iterator, 5)
    rows = _rows(Pieces(InMemory(_documents()), 4), _CONFIG, 2)
    for _ in range(2 * 5):
      next(rows)
    self.assertEqual(rows.get_state(), iterator.get_state()['shards']['2'])

  def test_state_of_the_first_format_is_understood(self):
    iterator = pipeline.batches(_documents(), _CONFIG)
    _take(iterator, 5)
    state = iterator.get_state()
    shards = [
      {key: shard[key] for key in ('before_document', 'offset')}
      for shard in state['shards'].values()
    ]
    other = pipeline.batches(_documents(), _CONFIG)
    other.set_state({'version': 1, 'shards': shards})
    self.assertEqual(other.get_state(), state)
    _assert_equal(next(other), next(iterator))

  @parameterized.parameters(0, 1, 3, 6)
  def test_state_is_exact_when_batches_change_their_size(self, start):
    sizes = (2, 1, 5, 1, 3, 4, 2, 2)
    iterator = pipeline.batches(_documents(), _CONFIG)
    for size in sizes[:start]:
      iterator.take(size)
    state = json.dumps(iterator.get_state())
    other = pipeline.batches(_documents(), _CONFIG)
    other.set_state(json.loads(state))
    for size in sizes[start:]:
      batch = iterator.take(size)
      self.assertLen(batch.tokens_BL, 4 * size)
      _assert_equal(other.take(size), batch)

  def test_any_sizes_give_the_rows_of_one_order(self):
    iterator = pipeline.batches(_documents(), _CONFIG)
    taken = [iterator.take(size) for size in (2, 1, 5, 1, 3)]
    whole = pipeline.batches(_documents(), _CONFIG).take(12)
    np.testing.assert_array_equal(_tokens(taken), _tokens([whole]))

  def test_state_of_another_format_or_shard_count_is_refused(self):
    iterator = pipeline.batches(_documents(), _CONFIG)
    state = iterator.get_state()
    other = pipeline.batches(_documents(), _config(num_shards=2))
    with self.assertRaisesRegex(sources.DataError, '4 shards, this .* 2;'):
      other.set_state(state)
    for bad in ({}, {**state, 'version': 0}):
      with self.assertRaisesRegex(sources.DataError, 'saved data position'):
        iterator.set_state(bad)


class SameAsEverTest(parameterized.TestCase):
  @parameterized.parameters(
    (False, 30, 40, '22cca032afb40fc4'),
    (False, 2, 300, '10dec780352d861d'),
    (True, 30, 40, 'dadb4b3f61a17b6c'),
    (True, 2, 300, '119b87d26a24d1b7'),
  )
  def test_one_source_gives_the_batches_that_it_gave_before_there_were_more(
    self, isolate, count, longest, expected
  ):
    config = _config(isolate_documents=isolate, seed=3)
    total = hashlib.sha256()
    for batch in _take(
      pipeline.batches(_documents(count, longest), config), 40
    ):
      for leaf in jax.tree.leaves(batch):
        total.update(np.ascontiguousarray(leaf).tobytes())
    self.assertStartsWith(total.hexdigest(), expected)


# Number and greatest length of the documents of two sources.
_MIXED = ((40, 30), (25, 90))


def _mixed(weights=(0.7, 0.3), process=0, num_processes=1, **changes):
  """Two sources of ids below and above 5,000, of unequal mean length."""
  config = _config(**changes)
  sources_tokens = [_documents(*numbers) for numbers in _MIXED]
  sources_tokens[1] = [
    np.where(tokens > 1, tokens + 5000, tokens) for tokens in sources_tokens[1]
  ]
  ingredients = [
    pipeline.Ingredient(
      weight, InMemory(tokens, [f'{"ab"[n]}{k}' for k in range(len(tokens))])
    )
    for n, (weight, tokens) in enumerate(
      zip(weights, sources_tokens, strict=True)
    )
  ]
  return pipeline.mixed_batches(
    ingredients, config, _reverse_some, process, num_processes
  )


def _reverse_some(tokens, is_whole, source, document, part, epoch):
  """An augmentation by document and epoch, without a tokenizer."""
  del is_whole, part
  odd = (source + document + epoch) % 2
  return (
    np.concatenate([tokens[:1], tokens[-2:0:-1], tokens[-1:]])
    if odd
    else (tokens)
  )


class MixtureTest(parameterized.TestCase):
  @parameterized.parameters((0.7, 0.3), (0.1, 0.9), (0.5, 0.5))
  def test_weights_are_shares_of_tokens_in_every_shard(self, *weights):
    # BOS and EOS count too, but don't say which source they are of.
    means = [np.mean([len(d) for d in _documents(*n)]) for n in _MIXED]
    inner = [w * (1 - 2 / mean) for w, mean in zip(weights, means, strict=True)]
    expected = inner[0] / sum(inner)
    batches = _take(_mixed(weights), 500)
    streams = [_tokens(batches, slice(shard, None, 4)) for shard in range(4)]
    streams.append(np.concatenate(streams))
    for stream, delta in zip(streams, [0.02] * 4 + [0.005], strict=True):
      share = (stream[stream > 1] < 5000).mean()
      self.assertAlmostEqual(share, expected, delta=delta)

  def test_each_source_is_read_whole_before_it_is_repeated(self):
    stream = _tokens(_take(_mixed(num_shards=1, batch_size=1), 1200))
    low = stream[(stream > 1) & (stream < 5000)]
    num_tokens = len({int(t) for d in _documents(40, 30) for t in d[1:-1]})
    for epoch in range(2):
      part = low[epoch * num_tokens :][:num_tokens]
      self.assertLen(set(part.tolist()), num_tokens)

  @parameterized.parameters(0, 1, 2, 7, 40, 150)
  def test_state_restores_exact_next_batch_through_json(self, start):
    iterator = _mixed()
    _take(iterator, start)
    state = json.dumps({'nested': [iterator.get_state()]})
    expected = _take(iterator, 10)
    fresh = _mixed()
    next(fresh)
    fresh.set_state(json.loads(state)['nested'][0])
    for batch, other in zip(expected, _take(fresh, 10), strict=True):
      _assert_equal(batch, other)
    if start:
      shards = json.loads(state)['nested'][0]['shards'].values()
      self.assertTrue(any(shard['offset'] for shard in shards))

  def test_records_are_the_documents_of_each_row(self):
    iterator = _mixed()
    self.assertEmpty(iterator.records().names())
    owners = {}
    for letter, tokens, shift in (
      ('a', _documents(40, 30), 0),
      ('b', _documents(25, 90), 5000),
    ):
      for number, document in enumerate(tokens):
        owners |= {int(t) + shift: f'{letter}{number}' for t in document[1:-1]}
    for _ in range(30):
      batch = next(iterator)
      names = iterator.records().names()
      self.assertLen(names, len(batch.tokens_BL))
      for row, row_names in zip(batch.tokens_BL, names, strict=True):
        expected = [owners[t] for t in row.tolist() if t > 1]
        found = [name.split(',')[0] for name in row_names]
        self.assertContainsSubset(expected, found)
        self.assertLessEqual(len(found), len(set(expected)) + 2)

  def test_records_stay_those_of_their_batch(self):
    iterator = _mixed()
    next(iterator)
    records = iterator.records()
    names = records.names()
    next(iterator)
    self.assertEqual(records.names(), names)
    self.assertNotEqual(iterator.records().names(), names)


class ProcessesTest(parameterized.TestCase):
  @parameterized.product(num_processes=(1, 2, 4), start=(0, 5))
  def test_any_number_of_processes_makes_the_same_global_batches(
    self, num_processes, start
  ):
    whole = _mixed(isolate_documents=True)
    parts = [
      _mixed(process=p, num_processes=num_processes, isolate_documents=True)
      for p in range(num_processes)
    ]
    _take(whole, start)
    # Goes on with another number of processes than made the state.
    state = json.dumps(whole.get_state())
    for part in parts:
      part.set_state(json.loads(state))
    for _ in range(6):
      expected = next(whole)
      local = [next(part) for part in parts]
      for name in ('tokens_BL', 'positions_BL', 'target_segments_BL'):
        np.testing.assert_array_equal(
          _global_rows([getattr(batch, name) for batch in local], 4),
          getattr(expected, name),
        )
    merged = pipeline.merge_states([part.get_state() for part in parts])
    self.assertEqual(merged, whole.get_state())
    self.assertEqual(json.dumps(merged), json.dumps(whole.get_state()))

  def test_a_process_reads_its_own_shards_alone(self):
    state = _mixed(process=1, num_processes=2).get_state()
    self.assertEqual(list(state['shards']), ['1', '3'])

  def test_states_that_are_not_of_one_run_are_refused(self):
    one, two = (
      _mixed(process=p, num_processes=2).get_state() for p in range(2)
    )
    for states in ([one, one], [one, {**two, 'num_shards': 8}]):
      with self.assertRaisesRegex(sources.DataError, 'take one of each'):
        pipeline.merge_states(states)
    with self.assertRaisesRegex(sources.DataError, 'lacks shard 1 of 4'):
      _mixed().set_state(one)

  def test_processes_that_do_not_divide_the_shards_are_refused(self):
    with self.assertRaisesRegex(sources.DataError, 'among 3 processes'):
      _mixed(process=0, num_processes=3)


class MicroBatchTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 4)
  def test_parts_are_every_nth_row(self, parts):
    batch = next(pipeline.batches(_documents(), _CONFIG))
    made = pipeline.micro_batches(batch, parts)
    self.assertLen(made, parts)
    for part, micro in enumerate(made):
      np.testing.assert_array_equal(
        micro.targets_BL, batch.targets_BL[part::parts]
      )


def _global_rows(local: list[np.ndarray], num_shards: int) -> np.ndarray:
  """Puts the rows of each process where the global batch has them."""
  owned = num_shards // len(local)
  rows: list[Any] = [None] * sum(map(len, local))
  for process, array in enumerate(local):
    for n, row in enumerate(array):
      shard = process + n % owned * len(local)
      rows[n // owned * num_shards + shard] = row
  return np.stack(rows)


class FingerprintTest(parameterized.TestCase):
  documents = tuple(sources.Document(f'{n}', f'text {n}\n') for n in range(3))

  def setUp(self):
    super().setUp()
    self.tokenizer = tokenizer_training.train(['text'], 260)
    self.print = pipeline.fingerprint(self.documents, self.tokenizer, _CONFIG)

  def test_same_data_has_the_same_fingerprint(self):
    again = tokenizer_training.train(['text'], 260)
    config = _config(
      source='elsewhere', heldout_fraction=0.5, skip_corrupt=True
    )
    self.assertEqual(
      pipeline.fingerprint(list(self.documents), again, config), self.print
    )
    self.assertRegex(self.print, '^[0-9a-f]{64}$')

  @parameterized.parameters(
    {'sequence_length': 8},
    {'batch_size': 4},
    {'num_shards': 2},
    {'seed': 1},
    {'isolate_documents': True},
    {'fim_rate': 0.1},
    {'split_punctuation_rate': 0.1},
  )
  def test_every_decisive_key_changes_it(self, **changes):
    other = pipeline.fingerprint(
      self.documents, self.tokenizer, _config(**changes)
    )
    self.assertNotEqual(other, self.print)

  def test_a_mixture_changes_it(self):
    other = pipeline.fingerprint(
      self.documents, self.tokenizer, _CONFIG, mixture=[0.7, 0.3]
    )
    self.assertNotEqual(other, self.print)

  def test_documents_their_order_and_the_tokenizer_change_it(self):
    first, *rest = self.documents
    for documents in (
      rest,
      [*rest, first],
      [sources.Document('x', first.text), *rest],
      [sources.Document(first.name, 'x'), *rest],
    ):
      self.assertNotEqual(
        pipeline.fingerprint(documents, self.tokenizer, _CONFIG), self.print
      )
    tokenizer = tokenizer_training.train(['text'], 259)
    self.assertNotEqual(
      pipeline.fingerprint(self.documents, tokenizer, _CONFIG), self.print
    )


if __name__ == '__main__':
  absltest.main()
