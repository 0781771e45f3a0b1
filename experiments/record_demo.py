"""Records a finished demo: the figures and the picture that documents show.

make demo
python experiments/record_demo.py --workdir=runs/demo

Writes docs/demo.json, docs/report.png, the page of the same run, and
docs/demo_sample.txt, what the model wrote at the end. Chromium draws the page;
it has to be on the PATH. The picture carries the record, so that the two can't
be of different runs. tests/test_recorded_demo.py compares what README.md and
configs/demo.py say with the record.
"""

import json
import pathlib
import shutil
import subprocess
import tempfile

from absl import app, flags
from PIL import Image, PngImagePlugin

from seekax.storage import workdir as workdir_lib
from seekax.storage.rows import read_rows

_WORKDIR = flags.DEFINE_string('workdir', 'runs/demo', 'the finished run')
_CHROMIUM = flags.DEFINE_string('chromium', 'chromium', 'the browser')

DOCS = pathlib.Path(__file__).parents[1] / 'docs'
RECORD, PICTURE = DOCS / 'demo.json', DOCS / 'report.png'
SAMPLE = DOCS / 'demo_sample.txt'
# Name of the record within the picture.
KEY = 'record'
_SIZE = (1080, 920)


def record_of(workdir: pathlib.Path) -> dict[str, float | int | None]:
  """A run's summary.json, with the other figures that documents name."""
  summary = json.loads((workdir / workdir_lib.SUMMARY).read_text())
  last = [
    row
    for row in read_rows(workdir / workdir_lib.METRICS)
    if row['kind'] == 'eval'
  ][-1]
  return summary | {
    'steps': last['step'],
    'tokens': last['tokens'],
    'heldout_documents': last['heldout_documents'],
    'mtp_acceptance': last['mtp_acceptance'][0],
  }


def sample_of(workdir: pathlib.Path) -> str:
  """What the model wrote at the last step."""
  return max((workdir / workdir_lib.SAMPLES).iterdir()).read_text()


def draw(page: pathlib.Path, picture: pathlib.Path) -> None:
  """Draws the top of a page as a PNG."""
  with tempfile.TemporaryDirectory() as profile:
    subprocess.run(
      [
        _CHROMIUM.value,
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        '--no-first-run',
        '--disable-background-networking',
        '--hide-scrollbars',
        f'--user-data-dir={profile}',
        f'--window-size={_SIZE[0]},{_SIZE[1]}',
        f'--screenshot={picture}',
        page.resolve().as_uri(),
      ],
      check=True,
      capture_output=True,
    )


def main(argv: list[str]) -> None:
  """Writes the record and the picture."""
  del argv
  if not shutil.which(_CHROMIUM.value):
    raise app.UsageError(f'--chromium={_CHROMIUM.value} is not on the PATH')
  workdir = pathlib.Path(_WORKDIR.value)
  text = json.dumps(record_of(workdir), indent=2)
  with tempfile.TemporaryDirectory() as folder:
    raw = pathlib.Path(folder, 'page.png')
    draw(workdir / workdir_lib.REPORT, raw)
    carried = PngImagePlugin.PngInfo()
    carried.add_text(KEY, text)
    with Image.open(raw) as image:
      image.convert('RGB').save(PICTURE, pnginfo=carried, optimize=True)
  SAMPLE.write_text(sample_of(workdir))
  RECORD.write_text(text + '\n')
  print(text)


if __name__ == '__main__':
  app.run(main)
