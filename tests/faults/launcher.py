"""Runs a command with one fault in it: launcher.py FAULT[:NUMBER] <words>.

What can't be done to a process from outside is done here, inside of it, by
putting one function in another's place.
"""

import dataclasses
import os
import shutil
import signal
import sys
import time

import jax
import numpy as np

from seekax.cli import main
from seekax.runs import pretraining
from seekax.storage import checkpoint
from seekax.training import schedules

_MOST_LEFT = 1 << 20  # Bytes that a full disk still has.


def _weigh_mtp(weight: float, is_struck) -> None:
  """Gradients are spoilt by way of the MTP loss; nothing is compiled anew."""
  plain = schedules.Schedule.rates

  def rates(self, step):
    found = plain(self, step)
    if not is_struck(step + 1):
      return found
    return dataclasses.replace(found, mtp_weight=np.float32(weight))

  schedules.Schedule.rates = rates


def nonfinite(step: int) -> None:
  """The gradient of one step is no number."""
  _weigh_mtp(np.nan, lambda number: number == step)


def nonfinite_from(step: int) -> None:
  """The gradient of no step from this one on is a number."""
  _weigh_mtp(np.nan, lambda number: number >= step)


def spike(step: int) -> None:
  """The gradient of one step is hundreds of times as large."""
  _weigh_mtp(1000.0, lambda number: number == step)


def kill_before_manifest(save: int) -> None:
  """SIGKILL after the checkpoint's commit, before it is proven."""
  plain, saves = checkpoint.write_manifest, []

  def write_manifest(folder, manifest):
    saves.append(folder)
    if len(saves) == save:
      os.kill(os.getpid(), signal.SIGKILL)
    plain(folder, manifest)

  checkpoint.write_manifest = write_manifest


def slow_save(seconds: int) -> None:
  """Every save takes longer, so that a signal can meet one."""
  plain = checkpoint.write_manifest

  def write_manifest(folder, manifest):
    time.sleep(seconds)
    plain(folder, manifest)

  checkpoint.write_manifest = write_manifest


def full_disk(save: int) -> None:
  """The disk fills up between the question for room and the answer."""
  plain, saves = checkpoint._check_room, []

  def check_room(folder, parts):
    plain(folder, parts)
    saves.append(folder)
    if len(saves) == save:
      size = max(shutil.disk_usage(folder).free - _MOST_LEFT, 0)
      with open(folder.parent / 'ballast', 'wb') as file:
        os.posix_fallocate(file.fileno(), 0, size)

  checkpoint._check_room = check_room


def clock(seconds: int) -> None:
  """The wall clock jumps to and fro, ten times a second."""
  plain = time.time

  def jumping():
    return plain() + (seconds if int(10 * time.monotonic()) % 2 else 0)

  time.time = jumping


def wrong_once(step: int) -> None:
  """One step's result has one wrong bit, as of a broken machine."""
  plain, seen = pretraining.train_step, []

  def train_step(config, state, batch, rates):
    number = int(state.step) + 1
    state, metrics = plain(config, state, batch, rates)
    if number == step and not seen:
      seen.append(number)
      params = dict(state.params)
      head = np.array(params['head'])
      head.view(np.uint32).flat[0] ^= 1
      params['head'] = jax.device_put(head, state.params['head'].sharding)
      state = dataclasses.replace(state, params=params)
    return state, metrics

  pretraining.train_step = train_step


FAULTS = {
  function.__name__: function
  for function in (
    nonfinite,
    nonfinite_from,
    spike,
    kill_before_manifest,
    slow_save,
    full_disk,
    clock,
    wrong_once,
  )
}

if __name__ == '__main__':
  name, _, number = sys.argv[1].partition(':')
  FAULTS[name](int(number))
  sys.exit(main.main(sys.argv[2:]))
