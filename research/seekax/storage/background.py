"""A function that runs in a thread while the caller goes on."""

from collections.abc import Callable
import threading


class Background:
  """A function in a thread that ends with the process."""

  def __init__(self, function: Callable[[], None]):
    self._function = function
    self._error: Exception | None = None
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def _run(self) -> None:
    try:
      self._function()
    except Exception as error:  # `result` raises it again.
      self._error = error

  def failed(self) -> bool:
    """Whether it ended with an error."""
    return self._error is not None

  def result(self) -> None:
    """Waits until it ends; raises its error."""
    self._thread.join()
    if self._error is not None:
      raise self._error
