"""Laws of showing one error for many."""

import logging
import sys
import threading
import types
from unittest import mock

from absl.testing import absltest

from seekax.storage.thread_errors import held_back


def fail_in_a_thread(error: Exception) -> None:
  def body():
    raise error

  thread = threading.Thread(target=body)
  thread.start()
  thread.join()


def print_error(error: Exception) -> None:
  """As a C++ thread whose callback raised does."""
  args = types.SimpleNamespace(exc_type=type(error), exc_value=error)
  sys.unraisablehook(args)


class HeldBackTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.shown, self.logged = [], []
    for module, name in ((sys, 'unraisablehook'), (threading, 'excepthook')):
      self.addCleanup(setattr, module, name, getattr(module, name))
      setattr(module, name, lambda args: self.shown.append(str(args.exc_value)))
    self.logger = logging.getLogger(self.id())
    self.logger.propagate = False
    handler = logging.Handler()
    self.enter_context(
      mock.patch.object(handler, 'emit', lambda r: self.logged.append(r.msg))
    )
    self.logger.addHandler(handler)

  def log_error(self, text: str, error: Exception) -> None:
    self.logger.error(text, exc_info=(type(error), error, None))

  def test_a_call_that_fails_shows_its_own_error_alone(self):
    with (
      self.assertRaisesRegex(ValueError, 'the cause'),
      held_back(self.logger),
    ):
      fail_in_a_thread(ValueError('the same'))
      self.log_error('the same', ValueError())
      print_error(RuntimeError('Event loop is closed'))
      raise ValueError('the cause')
    print_error(RuntimeError('Event loop is closed'))  # A straggler.
    self.assertEqual((self.shown, self.logged), ([], []))

  def test_what_is_logged_of_a_load_that_fails_is_not_shown(self):
    with self.assertRaises(KeyError), held_back(self.logger, True):
      self.logger.error('a foreign file: %s', '\x1b[2J' * 999)
      raise KeyError
    self.assertEmpty(self.logged)

  def test_what_is_logged_of_a_load_that_succeeds_is_one_plain_line(self):
    self.logger.setLevel(logging.INFO)
    with held_back(self.logger, with_warnings=True):
      self.logger.warning('a foreign file: %s', '\x1b[2J\n' * 999)
      self.logger.info('shown at once')
      self.assertEqual(self.logged, ['shown at once'])
    (_, line) = self.logged
    self.assertTrue(line.isprintable())
    self.assertLess(len(line), 500)

  def test_other_errors_are_shown_after_it(self):
    with self.assertRaises(ValueError), held_back(self.logger):
      fail_in_a_thread(KeyError('other'))
      self.log_error('other', KeyError())
      self.logger.error('no exception')
      print_error(RuntimeError('another'))
      self.assertEqual((self.shown, self.logged), ([], ['no exception']))
      raise ValueError
    self.assertEqual(self.shown, ["'other'", 'another'])
    self.assertEqual(self.logged, ['no exception', 'other'])
    print_error(RuntimeError('later'))
    self.assertEqual(self.shown[-1], 'later')

  def test_a_call_that_succeeds_hides_nothing(self):
    before = sys.unraisablehook, threading.excepthook
    with held_back(self.logger):
      fail_in_a_thread(ValueError('one'))
      print_error(RuntimeError('Event loop is closed'))
      self.log_error('logged', ValueError())
    self.assertEqual(self.shown, ['one', 'Event loop is closed'])
    self.assertEqual(self.logged, ['logged'])
    self.assertEqual((sys.unraisablehook, threading.excepthook), before)


if __name__ == '__main__':
  absltest.main()
