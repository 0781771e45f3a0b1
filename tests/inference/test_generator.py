"""Laws of texts that end before a string."""

from absl.testing import absltest, parameterized

from seekax.inference.generator import until


class UntilTest(parameterized.TestCase):
  @parameterized.parameters(
    (['ab', 'cd'], (), 'abcd'),
    (['ab', 'cd'], ('x',), 'abcd'),
    (['ab', 'cd'], ('c',), 'ab'),
    (['ab', 'cd'], ('bc',), 'a'),
    (['a', 'b', 'c', 'd', 'e'], ('bcd',), 'a'),
    (['a', 'b', 'c', 'x'], ('bcd',), 'abcx'),
    (['aab'], ('ab', 'aa'), ''),
    (['aaa', 'ab'], ('aab',), 'aa'),
    (['stop'], ('stopped',), 'stop'),
    ([], ('x',), ''),
  )
  def test_text_ends_before_the_first_of_the_strings(self, pieces, stop, want):
    self.assertEqual(''.join(until(pieces, stop)), want)

  def test_text_comes_as_soon_as_it_can(self):
    taken = []

    def pieces():
      for piece in ('one ', 'two ', 'th'):
        taken.append(piece)
        yield piece

    found = until(pieces(), ('thx',))
    self.assertEqual(next(found), 'one ')
    self.assertEqual(taken, ['one '])
    # What may begin the string waits, and comes in the end.
    self.assertEqual(list(found), ['two ', 'th'])


if __name__ == '__main__':
  absltest.main()
