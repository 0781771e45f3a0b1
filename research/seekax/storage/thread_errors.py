"""Of a call that fails, its own error is shown, not those of its threads.

Orbax's threads print a traceback of the error that it raises as well, and one
for every write that finds its event loop closed after that: hundreds of lines
in which the one that helps is lost.
"""

from collections.abc import Iterator
import contextlib
import logging
import sys
import threading
from typing import Any

from seekax.files import one_line


class _Quoted(Exception):
  """Stands for the error of a record that has none."""


@contextlib.contextmanager
def held_back(
  logger: logging.Logger, with_warnings: bool = False
) -> Iterator[None]:
  """Holds back what other threads print and log of their errors.

  If the body raises, those of the same type are dropped, as are the closed
  event loop's, now and later. Everything else is shown after the body.

  Args:
    logger: where the threads log.
    with_warnings: whether what they log without an error is held back too, and
      dropped if the body raises, whatever it raises. It may quote foreign
      files, so it is shown as one line each. The closed event loop's errors
      are dropped in any case: a load that succeeds may have given up a part
      that nobody asked for.
  """
  held: list[tuple[Any, Any, Any]] = []  # Its type, what shows it, with what.
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

  # Threads of C++ have the hook of errors that nobody can catch.
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
    # Once is enough: every further one would call those before it.
    quiet_hook = shown_by if _is_own(shown_by) else show_but_closed_loop
    after = quiet_hook if quiet else shown_by
    sys.unraisablehook, threading.excepthook = after, shown_for_thread
    logger.removeFilter(hold_record)
    for kind, show, args in held:
      closed_loop = show is shown_by and _is_closed_loop(args[0].exc_value)
      if kind not in dropped and not (quiet and closed_loop):
        show(*args)


def _is_own(hook: Any) -> bool:
  return getattr(hook, '__module__', '') == __name__


def forget_given_up(record: logging.LogRecord) -> bool:
  """A filter of asyncio's logger: no word of tasks that were given up."""
  return 'was never retrieved' not in record.getMessage()


def _is_closed_loop(error: BaseException | None) -> bool:
  return isinstance(error, RuntimeError) and str(error) == (
    'Event loop is closed'
  )
