"""What is made from the notebooks and the settings is in step with them. A notebook can't teach this: it is about the
notebooks"""
import ast,json,os,re,subprocess,sys,tarfile,venv,zipfile
from configparser import ConfigParser
from importlib.metadata import PathDistribution
from pathlib import Path
import pytest
import fastfold

scripts = Path(sys.executable).parent

def run(*cmd, cwd, **kwargs):
    "Run a command of this environment, showing what it printed if it fails"
    res = subprocess.run(cmd, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs)
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

def test_address(root, monkeypatch):
    "One place has the public address, and all else follows from it"
    monkeypatch.syspath_prepend(str(root/'tools'))
    from readme import absolute, address
    to,cited = address(),(root/'CITATION.cff').read_text(encoding='utf-8')
    assert f'repository-code: {to}\n' in cited if to else 'repository-code' not in cited
    md = '![a](images/b.png) [c](nbs/d.ipynb) [e](CONTRIBUTING.md) [f](#g)'
    assert absolute(md, '')==md
    there = 'https://host/us/fastfold'
    assert absolute(md, there).count(there)==3 and f'![a]({there}/raw/HEAD/images/b.png)' in absolute(md, there)

@pytest.fixture(scope='module')
def wheel(copy_to, tmp_path_factory):
    "The wheel, built from the source distribution as an installer would"
    pytest.importorskip('build', reason='the package `build` makes the distributions')
    d = copy_to(tmp_path_factory.mktemp('build')/'fastfold')
    run(sys.executable, '-m', 'build', '--no-isolation', cwd=d)
    return next((d/'dist').glob('*.whl'))

def test_metadata(wheel, root):
    cfg = ConfigParser(delimiters=['='], interpolation=None)
    cfg.read(root/'settings.ini', encoding='utf-8')
    cfg = cfg['DEFAULT']
    info = next(o for o in zipfile.Path(wheel).iterdir() if o.name.endswith('.dist-info'))
    dist = PathDistribution(info)
    extras = {f'{o}; extra == "{k}"' for k in ('dev','deploy','peers') for o in cfg[f'{k}_requirements'].split()}
    want = set(cfg['requirements'].split()) | extras
    assert set(dist.requires)==want
    assert dist.version==fastfold.__version__
    assert 'fastfold' in {o.name for o in dist.entry_points if o.group=='console_scripts'}

def test_wheel_files(wheel, root):
    names = {o for o in zipfile.ZipFile(wheel).namelist() if '.dist-info/' not in o}
    assert names=={o.relative_to(root).as_posix() for o in root.glob('fastfold/**/*.*') if '__pycache__' not in o.parts}
    assert 'fastfold/py.typed' in names

def test_ruff(root):
    run(sys.executable, '-m', 'ruff', 'check', '--no-cache', 'fastfold', 'tests', 'tools', 'setup.py', cwd=root)

@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """The Python of an environment of its own with fastfold in it, as the wheel has it; what fastfold needs is looked
    up in the environment of the tests"""
    d = tmp_path_factory.mktemp('venv')
    venv.EnvBuilder(with_pip=False).create(d)
    python = d/('Scripts/python.exe' if os.name=='nt' else 'bin/python')
    run(sys.executable, '-m', 'pip', '--python', python, 'install', '--no-deps', '--no-index', wheel, cwd=d)
    site = Path(run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))', cwd=d).strip())
    (site/'needs.pth').write_text('\n'.join(o for o in sys.path if Path(o).name in ('site-packages','dist-packages')))
    return python

smoke = """
import json, sys, fastfold
before = {o.partition('.')[0] for o in sys.modules}
from fastfold import BN_Folder
light = not {'fastai', 'pandas', 'matplotlib'} & {o.partition('.')[0] for o in sys.modules}
import torch
from torch import nn
from fastfold.all import *
model,x = nn.Sequential(nn.Conv2d(3,8,3), nn.BatchNorm2d(8), nn.ReLU()).eval(), torch.randn(2,3,8,8)
folder = BN_Folder()
folded = folder.fold(model, x)
same = torch.allclose(model(x), folded(x), atol=1e-6)
print(json.dumps([fastfold.__file__, light, str(folder.report), same, len(fastfold.all.__all__)]))
"""

def test_installed(installed, tmp_path):
    "What was installed is what runs, folds, and has its command; plain PyTorch users needn't load fastai"
    env = {k:v for k,v in os.environ.items() if k not in ('PYTHONPATH','PYTHONHOME')}
    out = run(installed, '-W', 'ignore', '-c', smoke, cwd=tmp_path, env=env)
    file,light,report,same,n = json.loads(out.splitlines()[-1])
    assert installed.parent.parent in Path(file).parents and light and same and n>5
    assert report.startswith('1 of 1 norm folded')
    command = next(installed.parent.glob('fastfold*'))
    assert run(command, '--version', cwd=tmp_path, env=env)==f'fastfold {fastfold.__version__}\n'

lazy = """
import json, sys
import fastfold
listed,alone = dir(fastfold), 'torch' in sys.modules
import torch
before = set(sys.modules)
from fastfold import {names}
res = [getattr(fastfold, o) for o in {names!r}.split(',')]
print(json.dumps([alone, listed, sorted(set(sys.modules)-before), [o.__name__ for o in res]]))
"""

def imported_with(names, root):
    """In a process of its own: does `fastfold` alone bring PyTorch, what `dir` lists, the modules that `names` bring
    beyond PyTorch, and what these are called"""
    code,env = lazy.format(names=names),{**os.environ, 'PYTHONPATH':str(root)}
    return json.loads(run(sys.executable, '-W', 'ignore', '-c', code, cwd=root, env=env))

def test_lazy_names(root):
    "The names that plain PyTorch takes come from the package itself, for little more than PyTorch costs"
    torch_too,listed,new,names = imported_with(','.join(fastfold.__all__), root)
    assert not torch_too and names==fastfold.__all__ and {*fastfold.__all__, '__version__'} <= set(listed)
    others = {o.partition('.')[0] for o in new}-sys.stdlib_module_names
    # PyTorch has some of numpy already
    assert {o for o in others if not o.startswith('_cython')} <= {'fastfold','fastcore','numpy'}
    heavy = 'fastfold.lab','fastfold.training','fastfold.learner','fastfold.cli','fastfold.all'
    assert not [o for o in new if o.startswith(heavy)]

@pytest.mark.parametrize('name', ['FoldError','fold_conv_bn','FoldReport'])
def test_lazy_one(name, root):
    "One name brings what it needs, and not the folder"
    new = imported_with(name, root)[2]
    assert 'fastfold.folder' not in new

def test_lazy_unknown():
    "What isn't there is missing as from any module, and rooms are imported as before"
    assert not hasattr(fastfold, 'no_such')
    with pytest.raises(ImportError, match='no_such'): from fastfold import no_such # noqa: F401
    from fastfold import cli
    assert cli is sys.modules['fastfold.cli']

def test_lazy_typed(root):
    "Type checkers are told of the same names, from the same rooms, as are found when it runs"
    tree = ast.parse((root/'fastfold/__init__.py').read_text(encoding='utf-8'))
    branch = next(o for o in tree.body if isinstance(o, ast.If))
    told = {name.name: o.module for o in branch.body for name in o.names}
    assert told==fastfold._rooms and set(told)==set(fastfold.__all__)

def test_source_files(wheel):
    "What is needed to build it again and to know what it is"
    names = {o.partition('/')[2] for o in tarfile.open(next(wheel.parent.glob('*.tar.gz'))).getnames()}
    assert {'LICENSE','README.md','CHANGELOG.md','pyproject.toml','settings.ini','setup.py','fastfold/py.typed'}<=names

def test_one_version(root):
    "The version stands in one place"
    v = re.escape(fastfold.__version__)
    files = [o for d in ('.','fastfold','tools','.github/workflows') for o in (root/d).iterdir()
        if o.suffix in ('.py','.toml','.ini','.cff','.in','.yaml')]
    says = re.compile(rf'(?<![\w.]){v}(?![\w.])')
    assert [o.name for o in files if says.search(o.read_text(encoding='utf-8'))]==['__init__.py']
    assert re.search(rf'^## {v}\b', (root/'CHANGELOG.md').read_text(encoding='utf-8'), flags=re.M)

def test_without_links(copy_to, tmp_path):
    "A checkout whose links are text files, as on Windows, can be mended so that what reads and what writes them works"
    d = copy_to(tmp_path/'fastfold')
    for o in 'index.ipynb','images':
        if (d/'nbs'/o).is_symlink(): (d/'nbs'/o).unlink()
        (d/'nbs'/o).write_text(f'../{o}')
    run(sys.executable, 'tools/links.py', cwd=d)
    assert (d/'nbs/index.ipynb').samefile(d/'index.ipynb') and (d/'nbs/images/block.png').samefile(d/'images/block.png')
    assert 'as they should be' in run(sys.executable, 'tools/links.py', cwd=d)
    run(scripts/'nbdev-clean', cwd=d)
    assert (d/'nbs/index.ipynb').samefile(d/'index.ipynb')

def test_types(root):
    """What the package says of its types holds, as far as PyTorch and fastai say something of theirs. The first run
    reads through both, which takes minutes"""
    pytest.importorskip('mypy', reason='mypy checks the types')
    run(sys.executable, '-m', 'mypy', '--cache-dir', Path(sys.prefix)/'mypy-cache', 'fastfold', cwd=root)
