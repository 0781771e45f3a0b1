"""Shows the error of a call that fails, but not those of its threads.

Orbax's threads also print a traceback of the error that it raises, and another
for every write that then finds its event loop closed: hundreds of lines that
hide the useful one.
"""

from collections.abc import Callable, Generator
import contextlib
import logging
import sys
import threading
from typing import Any

from seekax.files import one_line


class _Quoted(Exception):
  """The error of a log record that has none."""


@contextlib.contextmanager
def held_back(
  logger: logging.Logger, with_warnings: bool = False
) -> Generator[None]:
  """Holds back the errors that other threads print and log.

  If the body raises an error, theirs of the same type are dropped, and so are,
  now and later, those about the closed event loop. All others are shown after
  the body.

  Args:
    logger: the logger that the threads use.
    with_warnings: whether records without an error are held back too, and
      dropped if the body raises any error. They may quote untrusted files, so
      each is shown as one line. Errors about the closed event loop are dropped
      in any case: a load that succeeds may have cancelled the reading of other
      parts.
  """
  # (type, function to show it, its argument)
  held: list[tuple[type | None, Callable[..., object], tuple[Any]]] = []
  shown_by, shown_for_thread = sys.unraisablehook, threading.excepthook

  def hold(args):
    held.append((args.exc_type, shown_by, (args,)))

  def hold_for_thread(args):
    held.append((args.exc_type, shown_for_thread, (args,)))

  def hold_record(record: logging.LogRecord) -> bool:
    kind = record.exc_info and record.exc_info[0]
    if not kind:
      if not with_warnings or record.levelno < logging.WARNING:
        return True
      kind = _Quoted
      record.msg, record.args = one_line(record.getMessage()), ()
    held.append((kind, logger.handle, (record,)))
    return False

  def show_but_closed_loop(args):
    if not _is_closed_loop(args.exc_value):
      shown_by(args)

  # Errors that no code can catch, as in C++ threads, go to this hook.
  sys.unraisablehook, threading.excepthook = hold, hold_for_thread
  logger.addFilter(hold_record)
  dropped: tuple[type, ...] = ()
  try:
    yield
  except Exception as error:
    dropped = (type(error), _Quoted)
    raise
  finally:
    quiet = bool(dropped) or with_warnings
    # Hooks aren't nested: each further one would call all earlier ones.
    quiet_hook = shown_by if _is_own(shown_by) else show_but_closed_loop
    after = quiet_hook if quiet else shown_by
    sys.unraisablehook, threading.excepthook = after, shown_for_thread
    logger.removeFilter(hold_record)
    for kind, show, args in held:
      closed_loop = show is shown_by and _is_closed_loop(args[0].exc_value)
      if kind not in dropped and not (quiet and closed_loop):
        show(*args)


def _is_own(hook: object) -> bool:
  return getattr(hook, '__module__', '') == __name__


def forget_given_up(record: logging.LogRecord) -> bool:
  """A filter for asyncio's logger that drops records on cancelled tasks."""
  return 'was never retrieved' not in record.getMessage()


def _is_closed_loop(error: BaseException | None) -> bool:
  return isinstance(error, RuntimeError) and str(error) == (
    'Event loop is closed'
  )
