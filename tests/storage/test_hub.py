"""Models by hf:// names, from a small hub on the loopback."""

import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading

from absl.testing import absltest, parameterized

import published
from seekax.storage import hub
from seekax.storage.manifest import StorageError

_COMMIT = 40 * 'a'
_NAME = 'small/model'


class _Hub(http.server.BaseHTTPRequestHandler):
  """What huggingface_hub asks of the Hub for one public model."""

  folder: pathlib.Path
  asked: list[str]
  protocol_version = 'HTTP/1.1'

  def do_GET(self):
    self.asked.append(self.path)
    path = self.path.partition('?')[0]
    if path.startswith(f'/api/models/{_NAME}'):
      *_, kind, revision = path.split('/')
      if kind == 'tree':
        entries = [self._entry(file) for file in sorted(self.folder.iterdir())]
        return self._answer(200, json.dumps(entries).encode())
      if revision not in ('main', 'v1', _COMMIT):
        return self._answer(404, b'{}', {'X-Error-Code': 'RevisionNotFound'})
      files = sorted(path.name for path in self.folder.iterdir())
      about = {
        'id': _NAME,
        'sha': _COMMIT,
        'siblings': [{'rfilename': name} for name in files],
      }
      return self._answer(200, json.dumps(about).encode())
    if path.startswith(f'/{_NAME}/resolve/'):
      content = (self.folder / path.rpartition('/')[2]).read_bytes()
      return self._answer(200, content)
    return self._answer(404, b'{}', {'X-Error-Code': 'RepoNotFound'})

  do_HEAD = do_GET

  def _entry(self, file):
    content = file.read_bytes()
    oid = hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()
    return {
      'type': 'file',
      'path': file.name,
      'size': len(content),
      'oid': oid,
    }

  def _answer(self, code, content, headers=None):
    self.send_response(code)
    self.send_header('Content-Length', str(len(content)))
    self.send_header('ETag', f'"{hashlib.sha256(content).hexdigest()}"')
    self.send_header('X-Repo-Commit', _COMMIT)
    for name, value in (headers or {}).items():
      self.send_header(name, value)
    self.end_headers()
    if self.command == 'GET':
      self.wfile.write(content)

  def log_message(self, format, *args):
    pass


@contextlib.contextmanager
def serving(folder: pathlib.Path):
  """(address, paths that were asked for) of a hub that has one model."""
  paths: list[str] = []
  handler = type('Hub', (_Hub,), {'folder': folder, 'asked': paths})
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
      yield f'http://127.0.0.1:{server.server_port}', paths
    finally:
      server.shutdown()
      thread.join()


class HubTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(absltest.FLAGS.test_tmpdir) / cls.__name__
    cls.source = cls.root / 'model'
    made = published.tensors(published.SMALL, 'BF16')
    cls.source.mkdir(parents=True)
    published.write_folder(
      cls.source, published.fields(published.SMALL, made), made
    )
    # What would be unpickled or run is left where it is.
    (cls.source / 'pytorch_model.bin').write_bytes(b'x')
    (cls.source / 'modeling.py').write_text('raise SystemExit')

  def inspect(self, name, address, cache='cache'):
    """`seekax inspect` of a name, by a process that knows this hub."""
    hidden = ('HF_TOKEN', 'HF_HUB_OFFLINE')
    known = {k: v for k, v in os.environ.items() if k not in hidden}
    return subprocess.run(
      [sys.executable, '-m', 'seekax', 'inspect', name],
      env=known | {'HF_ENDPOINT': address, 'HF_HOME': str(self.root / cache)},
      capture_output=True,
      text=True,
      check=False,
    )

  def test_a_name_is_fetched_once_and_opens_like_its_folder(self):
    with serving(self.source) as (address, asked):
      first = self.inspect(f'hf://{_NAME}', address)
      self.assertEqual(first.returncode, 0, msg=first.stderr)
      self.assertFalse([p for p in asked if p.endswith(('.bin', '.py'))])
      fetched = sum('.safetensors' in path for path in asked)
      again = self.inspect(f'hf://{_NAME}@v1', address)
      self.assertEqual(again.returncode, 0, msg=again.stderr)
      self.assertEqual(sum('.safetensors' in p for p in asked), fetched)
    self.assertGreater(fetched, 0)
    folder = self.inspect(str(self.source), '')
    here, there = (
      [line for line in run.stdout.splitlines() if str(self.root) not in line]
      for run in (folder, first)
    )
    self.assertEqual(here, there)

  def test_what_is_not_there_is_said_in_a_line(self):
    with serving(self.source) as (address, _):
      for name, words in (
        ('hf://small/other', 'no such model'),
        (f'hf://{_NAME}@v9', "no revision 'v9'"),
      ):
        run = self.inspect(name, address, 'other')
        self.assertEqual(run.returncode, 2, msg=run.stderr)
        self.assertLen(run.stderr.strip().splitlines(), 1, msg=run.stderr)
        self.assertIn(words, run.stderr)
    run = self.inspect(f'hf://{_NAME}', 'http://127.0.0.1:9', 'third')
    self.assertEqual(run.returncode, 2, msg=run.stderr)
    self.assertIn('can not be reached', run.stderr)

  @parameterized.parameters('hf://', 'hf://one', 'hf://a/b/c', 'hf://a/../b')
  def test_names_that_can_not_be_are_refused(self, name):
    with self.assertRaisesRegex(StorageError, 'write hf://owner/name'):
      hub.fetch(name)


if __name__ == '__main__':
  absltest.main()
