"A copy of the checkout for the tests that run tools in it, so that the checkout itself stays as it is"
import os,shutil
from pathlib import Path
import pytest

# tests change folder, and a relative home would then send fastai downloading
if home := os.environ.get('FASTAI_HOME'): os.environ['FASTAI_HOME'] = str(Path(home).expanduser().resolve())

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
    "Function that copies what the project is made of to a new folder"
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
