"""Installs the library (research/seekax) and the `seekax` command."""

import setuptools

_CORE = [
  'absl-py>=2.3',
  'array-record>=0.8',
  'flatbuffers>=25',
  'flax>=0.12.8',
  'grain>=0.2.18',
  'huggingface-hub>=1',
  'jax>=0.10.2,<0.13',
  'jinja2>=3.1.6',
  'matplotlib>=3.10',
  'ml-collections>=1.1',
  'numpy>=2.1',
  'optax>=0.2.8',
  'orbax-checkpoint>=0.12.8',
  'rich>=14',
  'safetensors>=0.8',
  'tensorboardX>=2.6.4',
  'tokenizers>=0.22',
]
_EXTRAS = {
  'cuda': ['jax[cuda13]>=0.10.2,<0.13'],
  'cuda12': ['jax[cuda12]>=0.10.2,<0.13'],
  'cuda13': ['jax[cuda13]>=0.10.2,<0.13'],
  'data': ['pyarrow>=20'],
  'report': ['tensorboard>=2.20'],
  'colab': ['ipykernel>=7', 'jupyterlab>=4.4'],
  'dev': [
    'hypothesis>=6.150',
    'ipykernel>=7',
    'nbclient>=0.11',
    'pyarrow>=20',
    'pyrefly>=1.5',
    'pytest>=9',
    'pytest-xdist>=3.8',
    'ruff>=0.17',
    'setuptools>=80',
  ],
}

setuptools.setup(
  name='seekax',
  version='0.1.0',
  description='DeepSeek-V3 as open research software in JAX and Flax',
  license='Apache-2.0',
  python_requires='>=3.11,<3.14',
  # The configs lie at the top of the checkout, where they are read; an
  # installation has them too.
  package_dir={'': 'research', 'seekax.configs': 'configs'},
  packages=[*setuptools.find_packages('research'), 'seekax.configs'],
  package_data={'seekax.report': ['report.html']},
  install_requires=_CORE,
  extras_require=_EXTRAS,
  entry_points={'console_scripts': ['seekax=seekax.__main__:entry_point']},
)
