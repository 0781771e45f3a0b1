"""A trace of some steps: where their time goes, for TensorBoard and Perfetto.

`train.profile_steps` names the steps, '10' or '10:13', both ends included.
"""

from collections.abc import Callable
import pathlib

import jax

from seekax.arrays import PyTree
from seekax.configuration.train import profiled_steps

# Folder in a workdir; the one that TensorBoard's profile plugin reads.
PROFILE = 'profile'


class StepProfiler:
  """Starts and ends the trace between steps, when nothing else is running."""

  def __init__(
    self,
    steps: str,
    workdir: pathlib.Path,
    started_at: int,
    say: Callable[[str], None],
  ):
    """Takes the steps of a config, '' for none.

    Args:
      steps: '10' or '10:13'.
      workdir: gets the folder 'profile'.
      started_at: steps that were done when this process took over. The next
        one is the one that compiles, and is left out.
      say: prints a line.
    """
    self._first, self._last = profiled_steps(steps)
    compiling = started_at + 1
    if self._first <= compiling <= self._last:
      self._first = compiling + 1
      rest = 'leaves it out' if compiling < self._last else 'has no step left'
      say(f'step {compiling} compiles the program; the profile {rest}')
    self._folder = workdir / PROFILE
    self._say = say
    self._tracing = False

  def begins_after(self, step: int) -> bool:
    """Whether the step after this one is the first to be traced."""
    return self._first == step + 1 and self._first <= self._last

  def ends_after(self, step: int) -> bool:
    """Whether this step is the last to be traced."""
    return self._tracing and step == self._last

  def begin(self, state: PyTree) -> None:
    """Starts the trace once the steps before it are done."""
    jax.block_until_ready(state)
    options = jax.profiler.ProfileOptions()
    # Every call of every Python function would bury the rest.
    options.python_tracer_level = 0
    try:
      jax.profiler.start_trace(
        self._folder, create_perfetto_trace=True, profiler_options=options
      )
    except (OSError, RuntimeError) as error:
      self._say(f'no profile: {error}')
      return
    self._tracing = True

  def end(self, state: PyTree = None) -> None:
    """Writes the trace, if one was begun; steps that still run are awaited.

    What can't be written costs the profile, not the run.
    """
    if not self._tracing:
      return
    self._tracing = False
    jax.block_until_ready(state)
    try:
      jax.profiler.stop_trace()
      traces = self._folder.glob('plugins/profile/*/perfetto_trace.json.gz')
      newest = max(traces, key=lambda path: path.stat().st_mtime)
    except (OSError, RuntimeError, ValueError) as error:
      self._say(f'the profile could not be written: {error}')
      return
    self._say(
      f'profile: open {newest} on https://ui.perfetto.dev, or run tensorboard '
      f'--logdir={self._folder} (pip install tensorboard xprof)'
    )
