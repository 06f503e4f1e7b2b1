"What is made from the notebooks and the settings is in step with them. A notebook can't teach this: it is about the notebooks"
import subprocess,sys,zipfile
from configparser import ConfigParser
from importlib.metadata import PathDistribution
from pathlib import Path
import pytest
import fastfold

scripts = Path(sys.executable).parent

def run(*cmd, cwd):
    "Run a command of this environment, showing what it printed if it fails"
    res = subprocess.run(cmd, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert res.returncode==0, res.stdout
    return res.stdout

def contents(d):
    "What is in each file under `d`"
    return {str(f.relative_to(d)): f.read_bytes() for f in d.rglob('*') if f.is_file() and '__pycache__' not in f.parts}

@pytest.mark.parametrize('cmd', ['nbdev-export', 'nbdev-clean', 'python tools/readme.py'])
def test_in_step(cmd, copy_to, tmp_path):
    d = copy_to(tmp_path/'fastfold')
    before = contents(d)
    prog,*args = cmd.split()
    run(sys.executable if prog=='python' else scripts/prog, *args, cwd=d)
    after = contents(d)
    changed = sorted(k for k in {*before, *after} if before.get(k)!=after.get(k))
    if changed: pytest.fail(f'`{cmd}` changes {", ".join(changed)}: run it and commit what it makes', pytrace=False)

@pytest.fixture(scope='module')
def wheel(copy_to, tmp_path_factory):
    "The wheel, built from the source distribution as an installer would"
    d = copy_to(tmp_path_factory.mktemp('build')/'fastfold')
    run(sys.executable, '-m', 'build', '--no-isolation', cwd=d)
    return next((d/'dist').glob('*.whl'))

def test_metadata(wheel, root):
    cfg = ConfigParser(delimiters=['='], interpolation=None)
    cfg.read(root/'settings.ini', encoding='utf-8')
    cfg = cfg['DEFAULT']
    info = next(o for o in zipfile.Path(wheel).iterdir() if o.name.endswith('.dist-info'))
    dist = PathDistribution(info)
    want = set(cfg['requirements'].split()) | {f'{o}; extra == "{k}"' for k in ('dev','peers') for o in cfg[f'{k}_requirements'].split()}
    assert set(dist.requires)==want
    assert dist.version==fastfold.__version__
    assert 'fastfold' in {o.name for o in dist.entry_points if o.group=='console_scripts'}

def test_wheel_files(wheel, root):
    names = {o for o in zipfile.ZipFile(wheel).namelist() if '.dist-info/' not in o}
    assert names=={f'fastfold/{o.name}' for o in root.glob('fastfold/*.*')}
    assert 'fastfold/py.typed' in names

def test_ruff(root): run(sys.executable, '-m', 'ruff', 'check', '--no-cache', 'fastfold', 'tests', 'tools', 'setup.py', cwd=root)
