"""What all tests share: a copy of the checkout for those that run tools in it, so that the checkout itself stays as it
is, and which tests are fast or come first"""
import os,shutil
from functools import partial
from pathlib import Path
from socket import gaierror
from urllib.error import URLError
import pytest

# several processes that use all cores each would get in each other's way; PyTorch is not imported yet
if 'PYTEST_XDIST_WORKER' in os.environ: os.environ.setdefault('OMP_NUM_THREADS', '1')

# tests change directory, and a relative home would then send fastai downloading
if home := os.environ.get('FASTAI_HOME'): os.environ['FASTAI_HOME'] = str(Path(home).expanduser().resolve())

# `pytest -m fast` runs these: the layout, the engine on networks of every kind, and what learners may not change
FAST = {f'test_{o}' for o in 'house inputs messages operations ops rewritten'.split()}

# The tests of a file share one process, so that what takes long to make is made once. These files come first: the
# second device must be there before PyTorch computes a gradient, and a long file at the end would leave the other
# process idle
FIRST = [f'test_{o}' for o in
    'second_device docs notebooks engine merge no_harm deployment cli operations inputs'.split()]

def pytest_collection_modifyitems(items):
    for o in items:
        if o.path.stem in FAST: o.add_marker('fast')
    items.sort(key=lambda o: FIRST.index(o.path.stem) if o.path.stem in FIRST else len(FIRST))

@pytest.fixture(autouse=True)
def errors_of_rules(monkeypatch):
    "A rule for crossing an operation that fails has a fault, which must not be hidden"
    monkeypatch.setattr('fastfold.core.rules.strict', True)

@pytest.fixture(scope='session')
def root() -> Path:
    "The checkout"
    return Path(__file__).resolve().parent.parent

@pytest.fixture(scope='session')
def copy_to(root):
    "Function that copies what the project is made of to a new directory"
    def _copy(dest):
        dest.mkdir()
        for f in root.glob('*.*'):
            if f.is_file(): shutil.copy(f, dest)
        shutil.copy(root/'LICENSE', dest)
        skip = shutil.ignore_patterns('__pycache__', '.*')
        for d in 'fastfold','nbs','images','tools':
            if (root/d).exists(): shutil.copytree(root/d, dest/d, symlinks=True, ignore=skip)
        return dest
    return _copy

@pytest.fixture
def small_demo(monkeypatch, tmp_path):
    """A demo without photographs and network, on few drawings, with hardly any timing, in a directory of its own;
    returns where the pictures come from"""
    from fastfold.lab import comparison, pets
    def no_network(url): raise URLError(gaierror(-2, 'Name or service not known'))
    monkeypatch.setattr(pets, 'untar_data', no_network)
    monkeypatch.setattr(pets, 'local_pets', lambda: None)
    monkeypatch.setattr(pets, 'N_DRAWN', 24)
    monkeypatch.setattr(comparison, 'compare', partial(comparison.compare, rounds=1, min_time=1e-4, batch_sizes=(1,)))
    monkeypatch.chdir(tmp_path)
    return pets
